"""Byte n-gram model with interpolated Witten-Bell smoothing: what counting alone reaches.

python -m benchmarks.ngram [--recipe recipes/gpt2-shakespeare.yaml] [ORDER ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clock import Moment
from benchmarks.rows import RECIPES, Split, digest, read_split, stream

ALPHABET = 256
#: n bytes are kept as one 64-bit number.
LONGEST = 8


@dataclass(frozen=True)
class Counts:
    """What was seen of one context length: the grams (context and next byte) and the contexts, as sorted numbers."""

    grams: np.ndarray
    gram_counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    """How often each context was followed by anything."""
    kinds: np.ndarray
    """By how many different bytes."""


class NGram:
    """P(byte | context) = (count + kinds * P(byte | shorter context)) / (total + kinds), down to 1/256 for no context.

    Source: Witten and Bell 1991 (method C), interpolated as in Chen and Goodman 1998, section 2.5.

    Args:
        order: bytes of a gram; a context has one less.
        text: the training text.
    """

    def __init__(self, order: int, text: bytes):
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order {order} is not between 1 and {LONGEST}")
        self.order = order
        self.counts = [count(text, size) for size in range(order)]

    def probabilities(self, text: bytes) -> np.ndarray:
        """Return the probability of each byte of `text` given the bytes before it (at most `order - 1`)."""
        found = np.full(len(text), 1 / ALPHABET)
        for size, counts in enumerate(self.counts):
            if len(text) <= size:
                break
            grams = windows(text, size + 1)
            total = look_up(counts.contexts, counts.totals, grams >> np.uint64(8))
            kinds = look_up(counts.contexts, counts.kinds, grams >> np.uint64(8))
            seen = look_up(counts.grams, counts.gram_counts, grams)
            shorter = found[size:]
            # A context never seen has total and kinds 0, and says nothing beyond the shorter one.
            found[size:] = np.where(total > 0, (seen + kinds * shorter) / np.maximum(total + kinds, 1), shorter)
        return found

    def next_byte(self, context: bytes) -> np.ndarray:
        """Return the probability of each of the 256 bytes after `context`."""
        return np.array([self.probabilities(context + bytes([byte]))[-1] for byte in range(ALPHABET)])

    def bits_per_byte(self, text: bytes) -> float:
        """Return the mean of -log2 P over every byte of `text`."""
        return float(-np.log2(self.probabilities(text)).sum() / max(len(text), 1))


def windows(text: bytes, size: int) -> np.ndarray:
    """Return every `size` bytes in a row as one number, the last byte lowest."""
    data = np.frombuffer(text, np.uint8).astype(np.uint64)
    found = np.zeros(max(len(data) - size + 1, 0), np.uint64)
    for offset in range(size):
        found = (found << np.uint64(8)) | data[offset : offset + len(found)]
    return found


def count(text: bytes, size: int) -> Counts:
    """Return the counts of contexts of `size` bytes."""
    grams, gram_counts = np.unique(windows(text, size + 1), return_counts=True)
    contexts, inverse, kinds = np.unique(grams >> np.uint64(8), return_inverse=True, return_counts=True)
    totals = np.bincount(inverse, weights=gram_counts, minlength=len(contexts))
    return Counts(grams, gram_counts, contexts, totals, kinds)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted number among the sorted keys; 0 where it is none."""
    if len(keys) == 0:
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def measure(order: int, split: Split) -> dict[str, Any]:
    """Return bits per byte on the held-out rows of a split, and what it took."""
    started = Moment.now()
    model = NGram(order, stream(split.train).encode())
    spent = Moment.now().since(started)
    text = stream(split.held_out).encode()
    return {
        "side": f"{order}-gram",
        "bits_per_byte": model.bits_per_byte(text),
        "held_out_bytes": len(text),
        "parameters": sum(len(counts.grams) for counts in model.counts),
        "train": spent,
        "rows": {"train": digest(split.train), "held_out": digest(split.held_out)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orders", nargs="*", type=int, default=[5, 6], metavar="ORDER")
    parser.add_argument("--recipe", type=Path, default=RECIPES / "gpt2-shakespeare.yaml")
    given = parser.parse_args(arguments)
    split = read_split(given.recipe)
    for order in given.orders:
        print(json.dumps(measure(order, split)), flush=True)


if __name__ == "__main__":
    main()
