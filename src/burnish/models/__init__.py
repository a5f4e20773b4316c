"""Models: loading, presets from scratch, freezing."""
