"""Benchmarks: what burnish reaches, side by side with other code on the same rows (`python -m benchmarks.run`)."""
