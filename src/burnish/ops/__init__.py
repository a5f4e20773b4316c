"""Pure functions of tensors: no settings, no state."""
