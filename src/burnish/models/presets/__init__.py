"""One file per family of models from scratch; each is found by its `family` (see `burnish.models.scratch`)."""
