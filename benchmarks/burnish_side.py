"""One burnish run in a process of its own, through the Python API, with the time of its training alone.

python -m benchmarks.burnish_side RECIPE [--seed 0] [--threads N] [--precision fp32]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import burnish
from benchmarks.clock import Laps, Moment
from benchmarks.rows import digest, own_cache, read_split
from burnish.terminal import Terminal


class Stopwatch(Terminal):
    """A silent terminal that notes when training begins, which frozen layers do, and when each step is done."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.laps = Laps()
        self._part = ""

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Note the time before the frozen layers or, where there are none, before the first step."""
        with super().progress(name, total, done):
            if name == "frozen layers" or (name == "training" and self._part != "frozen layers"):
                self.laps.begin()
            self._part = name
            yield

    def advance(self, done: int, note: str = "") -> None:
        """Note the time after a step."""
        if self._part == "training":
            self.laps.step(done)
        super().advance(done, note)


def measure(recipe: Path, *, seed: int, threads: int, precision: str | None = None) -> dict[str, Any]:
    """Return what a run of a recipe reached, and what it took.

    `train` is the time from before frozen layers are computed to after the last step, `whole` that of the whole process:
    imports, data, tokenizer, model, training, a checkpoint, evaluation with intervals, samples, report. The one evaluation
    and the one checkpoint come after the last step, so the recipe's own spacing of both is the only thing that differs from
    it.

    Args:
        precision: in place of the recipe's.
    """
    watch = Stopwatch()
    with own_cache() as folder:
        found = burnish.train(
            str(recipe),
            terminal=watch,
            run={"dir": str(folder / "run"), "seed": seed, "threads": threads, "device": "cpu"},
            train={"evaluate_every": "100%"} | ({"precision": precision} if precision else {}),
            checkpoint={"every": "1000 hours"},
        )
        assert isinstance(found, burnish.Run)
        plan = found.folder.read_json(found.folder.plan)
        losses = [line["loss"] for line in found.history if line.get("loss") is not None]
        metrics = found.metrics
    whole = Moment.now()
    split = read_split(recipe)
    return {
        "side": "burnish" if precision is None else f"burnish-{precision}",
        "seed": seed,
        "threads": plan["threads"],
        "precision": plan["precision"],
        **metrics["validation"],
        "mean_train_loss": sum(losses) / len(losses),
        "parameters": plan["model"]["parameters"],
        "trainable": plan["model"]["trainable"],
        "steps": metrics["step"],
        "rows_learned": plan["total_rows"],
        "train": watch.laps.after(),
        "whole": {"cpu": whole.cpu},
        "own_seconds": metrics["seconds"],
        "rows": {"train": digest(split.train), "held_out": digest(split.held_out)},
        "held_out_bytes": sum(len(row.values["text"].encode()) for row in split.held_out),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    given = parser.parse_args(arguments)
    result = measure(given.recipe, seed=given.seed, threads=given.threads, precision=given.precision)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
