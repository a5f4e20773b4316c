"""burnish on a work of the speed benchmark, in a process of its own.

    python -m benchmarks.speed_burnish FOLDER [--cache DIR] [--run DIR] [--stop-at STEP]

FOLDER is what `benchmarks.speed_rows.make` wrote; its recipe.yaml is run as it stands.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import burnish
from benchmarks.gauge import Gauge, show
from benchmarks.peers.given import Given, held_out_loss, versions
from benchmarks.rows import own_cache
from burnish.errors import Stopped
from burnish.terminal import Terminal


class Told(Terminal):
    """A silent terminal that tells the gauge of the plan and of each step, and stops the run as a person would.

    Args:
        stop_at: step after which the run is asked to save itself and stop; None: it goes to its end.
    """

    def __init__(self, gauge: Gauge, stop_at: int | None):
        super().__init__(quiet=True)
        self.gauge, self.stop_at = gauge, stop_at
        self.training = False

    def facts(self, title: str, rows: list[tuple[str, str, str]]) -> None:
        """Begin to measure with the plan: all is prepared then, and no frozen layer has run yet."""
        super().facts(title, rows)
        if not self.gauge.steps:
            self.gauge.begin()

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Note whether what follows are steps."""
        self.training = name == "training"
        with super().progress(name, total, done):
            yield

    def advance(self, done: int, note: str = "") -> None:
        """Tell of a step."""
        if not self.training:  # such as the filling of a cache
            return
        self.gauge.step()
        if done == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        super().advance(done, note)


def measure(given: Given, run: Path, stop_at: int | None) -> None:
    """Train, or go on with a run, and print what it took and what it reached."""
    gauge = Gauge(given.untimed)
    recipe = str(given.folder / "recipe.yaml")
    with suppress(Stopped):
        burnish.train(recipe, terminal=Told(gauge, stop_at), run={"dir": str(run)})
    found = burnish.load(run)
    plan = found.folder.read_json(found.folder.plan)
    lines = [line for line in found.history if "loss" in line][-len(gauge.steps) :]
    rows, order = given.rows(), given.order()
    lengths = [len(rows[number]["input_ids"]) for number in order]
    first = lines[0]["step"] - 1
    steps = [lengths[step * given.batch : (step + 1) * given.batch] for step in range(first, first + len(lines))]
    trained = given.model(found.folder.model) if found.folder.model.is_dir() else None
    show(
        {
            **gauge.result(),
            "steps": len(lines),
            "rows": sum(line["rows"] for line in lines),
            "tokens": sum(map(sum, steps)),
            "timed_tokens": sum(map(sum, steps[given.untimed :])),
            "targets": sum(line["targets"] for line in lines),
            "positions": sum(line["positions"] for line in lines),
            "losses": [line["loss"] for line in lines],
            "held_out": held_out_loss(given, trained.state_dict()) if trained else None,
            "precision": plan["precision"],
            "arguments": {"recipe": Path(recipe).read_text(encoding="utf-8").replace(str(given.folder), "FOLDER")},
            "versions": versions(),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--cache", type=Path, help="default: an empty one, as on the first run of all")
    parser.add_argument("--run", type=Path, help="run folder to begin or go on with; default: a new one")
    parser.add_argument("--stop-at", type=int)
    asked = parser.parse_args(arguments)
    with own_cache(asked.cache) as folder:
        measure(Given.read(asked.folder), asked.run or folder / "run", asked.stop_at)


if __name__ == "__main__":
    main()
