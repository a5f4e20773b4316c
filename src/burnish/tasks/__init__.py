"""One file per task; each is found by its `name` (see `burnish.task`)."""
