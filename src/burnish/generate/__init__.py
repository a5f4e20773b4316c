"""Text generation, called by tasks, evaluation and serving alike."""
