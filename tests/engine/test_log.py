"""What each step says of itself in metrics.jsonl: positions, padding, waiting, share of the machine's best, memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import burnish.session
from burnish.engine import hooks
from burnish.engine.hooks import Log
from burnish.engine.loop import State, StepResult
from burnish.engine.rates import speed
from burnish.models.stack import filler
from burnish.run import RunFolder
from burnish.session import Session
from burnish.tasks.causal_lm import TextGeneration
from burnish.terminal import Terminal
from helpers import sentiment_rows, trained

KEYS = {
    "step", "loss", "lr", "grad_norm", "epoch", "rows", "targets", "positions", "padding", "seconds", "waited_seconds",
    "mfu", "peak_memory_bytes",
}  # fmt: skip

Train = Callable[..., Session]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train on ragged rows, three a step: `train(name, packing="off", data={...})`."""
    rows = tmp_path / "ragged.jsonl"
    texts = [
        {"prompt": "It " + "was " * (number % 9), "text": text} for number, (text, _) in enumerate(sentiment_rows(40))
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))

    def run(name: str, *, workers: int = 1, prompt: str | None = "prompt", **train: Any) -> Session:
        return trained(
            "text-generation",
            tmp_path / name,
            model={"preset": "gpt2-nano", "vocab_size": 300},
            data={"train": str(rows), "prompt": prompt, "workers": workers},
            train={"batch": 3, "sequence": 64, "length": "20 rows", "precision": "fp32", **train},
            checkpoint={"every": "1000 steps"},
        )

    return run


def steps_of(run: Session) -> list[dict[str, Any]]:
    return [line for line in run.folder.log_lines() if "loss" in line]


def lengths_of(run: Session, step: int) -> list[int]:
    return [run.stores["train"].length(row) for row in run.job.loader.rows(step)]


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_every_step_says_what_it_computed(train: Train, packing: str) -> None:
    """Padding by hand: three rows of at most 64 positions are computed at once, for a cut costs more than it saves."""
    run = train("run", packing=packing)
    lines = steps_of(run)
    assert [line["step"] for line in lines] == list(range(1, 8))
    before = 0
    for step, line in enumerate(lines):
        assert set(line) == KEYS
        lengths = lengths_of(run, step)
        assert len(lengths) == line["rows"] == (2 if step == 6 else 3)
        # A row carries one token more than the model sees of it.
        positions = line["positions"]
        assert positions == sum(length - 1 for length in lengths)
        longest = max(lengths) - 1
        computed = positions + filler([n - 1 for n in lengths]) if packing == "auto" else len(lengths) * longest
        assert line["padding"] == round(1 - positions / computed, 4)
        assert line["peak_memory_bytes"] >= before > -1 and line["peak_memory_bytes"] > 50e6
        before = line["peak_memory_bytes"]
        assert 0 <= line["waited_seconds"] <= line["seconds"]
    paddings = [line["padding"] for line in lines]
    assert sum(paddings) / len(paddings) > (0.1 if packing == "off" else 0)


def test_rows_of_one_length_are_packed_without_padding(train: Train, text_file: Path) -> None:
    run = train("run", prompt=None, length="4 steps")
    lines = steps_of(run)
    whole = [line for step, line in enumerate(lines) if len(set(lengths_of(run, step))) == 1]
    assert len(whole) >= 3 and all(line["padding"] == 0 and line["positions"] == 3 * 64 for line in whole)


def test_idle_positions_behind_many_ragged_rows_are_under_four_percent() -> None:
    """The padding that is left in a packed batch, for totals as they occur in a step of chat rows."""
    for total in range(2048, 40_000, 37):
        assert filler([total - 5, 5]) / total < 0.04
    assert filler([500] * 8) == 0


@pytest.mark.parametrize("peak", [1e9, None])
def test_share_of_the_machines_best_by_hand(train: Train, monkeypatch: pytest.MonkeyPatch, peak: float | None) -> None:
    """Within 5 %: the seconds in the log are rounded."""
    monkeypatch.setattr("burnish.session.peak_flops", lambda device, precision: peak)
    run = train("run")
    for line in steps_of(run):
        if peak is None:
            assert line["mfu"] is None
        else:
            wanted = run.plan.model["flops_per_position"] * line["positions"] / line["seconds"] / peak
            assert line["mfu"] == pytest.approx(wanted, rel=0.05)


def test_two_ranks_have_twice_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positions are those of all ranks, the best is that of one."""
    shares = []
    for size in (1, 2):
        log = Log(RunFolder(tmp_path / str(size)), 1, 10, lambda line, state: None, 1e6, 1e9)
        (tmp_path / str(size)).mkdir()
        group = SimpleNamespace(leads=True, size=size)
        job: Any = SimpleNamespace(
            group=group, device="cpu", total_steps=9, loader=SimpleNamespace(batch=1, total_rows=9)
        )
        clock = iter([10.0, 12.0])
        with monkeypatch.context() as patch:
            patch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda clock=clock: next(clock)))
            log(job, State(), None)
            log(job, State(step=1), StepResult(1.0, 1.0, 0.1, 1, 4, 500 * size, 0.0, 0.0))
        log.close()
        shares += [line["mfu"] for line in log.folder.log_lines()]
    assert shares == [0.25, 0.25]


def test_the_next_rows_are_prepared_meanwhile(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that take 40 ms to prepare, steps that take 80 ms: a thread ahead hides the first, and none does not."""
    collate, loss = TextGeneration.collate, TextGeneration.loss
    waited = {}
    for workers in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(TextGeneration, "collate", lambda *given: time.sleep(0.04) or collate(*given))
            patch.setattr(TextGeneration, "loss", lambda *given: time.sleep(0.08) or loss(*given))
            lines = steps_of(train(f"workers-{workers}", workers=workers, evaluate_every="1000 steps"))
        assert all(0 <= line["waited_seconds"] <= line["seconds"] for line in lines)
        waited[workers] = sum(line["waited_seconds"] for line in lines[1:])
    assert waited[0] >= 6 * 0.04
    assert waited[1] < waited[0] / 3


def test_the_speed_of_a_run_by_hand() -> None:
    """The first five steps warm up; shares are of all the time and all that was computed; evaluations are no steps."""

    def line(
        seconds: float, positions: int, padding: float, waited: float, mfu: float | None, peak: int
    ) -> dict[str, Any]:
        return {
            "step": 1, "seconds": seconds, "positions": positions, "padding": padding, "waited_seconds": waited, "mfu": mfu,
            "peak_memory_bytes": peak,
        }  # fmt: skip

    slow = [line(9.0, 1, 0.9, 9.0, 0.0, 1)] * 5
    last = [
        line(1.0, 100, 0.5, 0.1, 0.4, 70),
        {"step": 1, "evaluation": "validation"},
        line(3.0, 300, 0.0, 0.3, 0.2, 80),
    ]
    assert speed([*slow, *last]) == {
        "positions_per_second": 100.0, "padding": 0.2, "waited": 0.1, "mfu": 0.25, "peak_memory_bytes": 80,
    }  # fmt: skip
    assert speed(slow)["positions_per_second"] == 0.1
    assert speed([line(1.0, 7, 0.0, 0.0, None, 3)])["mfu"] is None
    assert speed([])["positions_per_second"] == 0.0


def test_what_was_measured_after_the_last_step_is_not_measured_again(
    tiny_bert: Path, reviews_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, score = [], burnish.session.score
    monkeypatch.setattr(burnish.session, "score", lambda *given, **more: scored.append(1) or score(*given, **more))
    given = {"model": str(tiny_bert), "data": str(reviews_file)}
    for name, every in (("after", "4 steps"), ("between", "3 steps")):
        train = {"length": "4 steps", "batch": 8, "evaluate_every": every, "best": None}
        run = {"dir": str(tmp_path / name)}
        burnish.train("text-classification", terminal=Terminal(quiet=True), **given, train=train, run=run)
    assert len(scored) == 1 + 2
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text())["validation"] for name in ("after", "between")
    ]
    assert metrics[0] == metrics[1]
