"""From sources to batches: rows, split, tokenizer, encoded store, order, loader."""
