"""The training loop and what keeps it honest: step, checkpoints, guards, hooks."""
