"""One file per kind of data; each is found by its `name` and file endings (see `burnish.data.rows`)."""
