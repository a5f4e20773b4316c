"""A voice assistant out of parts that are each trained by a recipe: hears, understands, acts and answers."""
