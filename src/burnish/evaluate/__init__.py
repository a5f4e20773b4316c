"""Evaluation: every metric from per-example records, with bootstrap intervals."""
