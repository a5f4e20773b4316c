"""What a run will do before it does it: everything derived from the settings, with the reason."""
