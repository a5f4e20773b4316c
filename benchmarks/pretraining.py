"""Pretraining on prose: a recipe by burnish, and what counting reaches on the same rows.

    python -m benchmarks.pretraining recipes/bert-prose.yaml [--seed 0] [--threads 1]

A decoder is compared with a byte 5-gram (bits per byte), a masked model with a two-sided bigram (hidden tokens guessed).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import burnish_side, ngram
from benchmarks.clock import Moment
from benchmarks.rows import own_cache, read_split
from burnish.api import resolve
from burnish.terminal import Terminal

#: How much of a token's own frequency is mixed into what was seen beside its neighbours.
_SMOOTHING = 1.0


class Bigram:
    """Guesses a token from the one before and the one after: argmax of P(token | before) P(after | token).

    Args:
        rows: token ids of the training sequences.
        size: of the vocabulary.
    """

    def __init__(self, rows: Sequence[np.ndarray], size: int):
        self.pairs = np.zeros((size, size), np.float32)
        self.single = np.zeros(size)
        for ids in rows:
            np.add.at(self.pairs, (ids[:-1], ids[1:]), 1)
            self.single += np.bincount(ids, minlength=size)
        self.share = self.single / self.single.sum()

    def guess(self, before: int, after: int) -> int:
        """Return the likeliest token between two."""
        first = (self.pairs[before] + _SMOOTHING * self.share) / (self.single[before] + _SMOOTHING)
        then = (self.pairs[:, after] + _SMOOTHING * self.share[after]) / (self.single + _SMOOTHING)
        return int((first * then).argmax())


def bigram(recipe: Path) -> dict[str, Any]:
    """Return the share of hidden held-out tokens that a bigram guesses; the same are hidden as in burnish's evaluation."""
    from burnish.run import RunFolder
    from burnish.session import Session

    config, task_class, _ = resolve(str(recipe), {"run": {"device": "cpu"}})
    with own_cache() as folder:
        session = Session(config, task_class, RunFolder(folder / "run"), Terminal(quiet=True))
        session.prepare()
        began = Moment.now()
        train, held_out = session.stores["train"], session.stores["validation"]
        model = Bigram(
            [np.asarray(train[row]["input_ids"], np.int64) for row in range(len(train))], len(session.task.tokenizer)
        )
        spent = Moment.now().since(began)
        right = total = 0
        for row in range(len(held_out)):
            batch = session.task.collate([held_out[row]])
            ids = batch.inputs["input_ids"][0].numpy()
            for place, label in zip(batch.targets["places"].tolist(), batch.targets["labels"].tolist(), strict=True):
                right += model.guess(int(ids[place - 1]), int(ids[place + 1])) == label
                total += 1
    return {"side": "bigram", "accuracy": right / total, "targets": total, "train": spent}


def measure(recipe: Path, seed: int, threads: int) -> list[dict[str, Any]]:
    """Return what counting and what burnish reach with a recipe."""
    masked = resolve(str(recipe), {})[1].name == "fill-mask"
    counted = bigram(recipe) if masked else ngram.measure(5, read_split(recipe))
    return [counted, burnish_side.measure(recipe, seed=seed, threads=threads)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON line for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    for result in measure(given.recipe, given.seed, given.threads):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
