"""The speed benchmark: the same work by burnish and by its peers, in turns, each run in a process of its own.

    python -m benchmarks.run speed                   every work; or name works: encoder encoder-frozen ... resume

Each work is a folder that every side is handed (`benchmarks.speed_rows`): model, encoded rows, their order, settings. All
sides use AdamW without weight decay, a constant learning rate, the same clipping, no dropout, one thread. A side takes
the rows in burnish's order, epoch after epoch, unless its own way of ordering is what makes it fast (group_by_length).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.children import run_child
from benchmarks.page import Result
from benchmarks.rows import ROOT
from benchmarks.speed_rows import Data, make

PEERS, OURS = ROOT / ".bench-venv", ROOT / ".bench-own-venv"
Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Args:
        arguments: what this side is given over its own defaults, besides what the work asks.
        own_order: it orders the rows of an epoch itself.
    """

    title: str
    module: str
    arguments: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def own_order(self) -> bool:
        """Whether it orders the rows of an epoch itself."""
        return self.arguments.get("train_sampling_strategy") == "group_by_length"

    @property
    def is_light(self) -> bool:
        """Whether it runs without an environment of its own and without a compiler."""
        return self.module == TRAINER and self.options != TRL and "torch_compile" not in self.arguments

    @property
    def is_peer(self) -> bool:
        """Whether it is not burnish."""
        return self.module != BURNISH


BURNISH, TRAINER = "benchmarks.speed_burnish", "benchmarks.peers.trainer"
TRL = ("--kind", "trl")
GROUPED = {"train_sampling_strategy": "group_by_length"}
SIDES: dict[str, Side] = {
    "burnish": Side("burnish", BURNISH),
    "burnish-warm": Side("burnish, second run on the same rows", BURNISH),
    "trainer": Side("Trainer, defaults", TRAINER),
    "trainer-bf16": Side("Trainer, bf16", TRAINER, {"bf16": True}),
    "trainer-tuned": Side("Trainer, tuned", TRAINER, {"bf16": True, **GROUPED}),
    "trainer-compiled": Side(
        "Trainer, tuned", TRAINER, {"bf16": True, "torch_compile": True, "dataloader_num_workers": 4}
    ),
    "trainer-streamed": Side("Trainer, rows streamed", TRAINER, {"streamed": True}),
    "trl": Side("TRL SFT, defaults", TRAINER, {}, TRL),
    "trl-tuned": Side("TRL SFT, tuned", TRAINER, {"gradient_checkpointing": False}, TRL),
    "trl-grouped": Side("TRL SFT, tuned", TRAINER, {"gradient_checkpointing": False, **GROUPED}, TRL),
    "loop": Side("plain PyTorch loop, compiled, bf16", "benchmarks.peers.loop"),
}


@dataclass(frozen=True)
class Goal:
    """A ratio to reach. `measure` names what is compared, see `benchmarks.speed_page.MEASURES`."""

    peer: str
    goal: float | None = None
    floor: float | None = None
    ours: str = "burnish"
    measure: str = "rate"
    title: str | None = None
    """What the row of the table is called, where not like the work."""


class Small(NamedTuple):
    """What makes a work small enough for a smoke test: fields of its data, and settings."""

    data: dict[str, Any]
    settings: Settings


@dataclass(frozen=True)
class Work:
    """What all sides do.

    Args:
        settings: burnish's settings over those that all works share (`benchmarks.speed_rows.recipe_of`).
        sides: in the order of their turns.
        small: makes the same work a smoke test.
        untimed: first steps that are no part of the rate; what they took is shown apart.
        stop_at: the run is stopped after this step, and what is measured is a run that goes on from there.
    """

    title: str
    data: Data
    settings: Settings
    goals: tuple[Goal, ...]
    small: Small
    untimed: int = 0
    stop_at: int | None = None
    device: str = "cpu"

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each row is seen about once."""
        return max(1, self.data.train // self.settings["train"]["batch"])

    @property
    def sides(self) -> list[str]:
        """The sides whose ratios are asked for, burnish first, in the order of their turns."""
        return list(dict.fromkeys([goal.ours for goal in self.goals] + [goal.peer for goal in self.goals]))

    def shrunk(self) -> Work:
        """Return the work small and on the processor, without sides that need their own environment or a compiler."""
        groups = {**self.settings, **self.small.settings}
        return replace(
            self,
            data=replace(self.data, **self.small.data),
            settings={name: {**self.settings.get(name, {}), **self.small.settings.get(name, {})} for name in groups},
            goals=tuple(goal for goal in self.goals if SIDES[goal.peer].is_light),
            untimed=min(self.untimed, 1),
            stop_at=3 if self.stop_at else None,
            device="cpu",
        )


def _train(batch: int, length: str) -> dict[str, Any]:
    return {"batch": batch, "length": length}


_SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 2}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_TINY_LLAMA = {**_TINY, "vocab_size": 600, "num_hidden_layers": 2, "num_key_value_heads": 1}

_SENTENCES = Data("sentiment", train=1024, held_out=256, positions=512)
_FEW_SENTENCES = Small({"train": 64, "held_out": 16, "model": _TINY}, {})
_FEW_TEXTS = Small(
    {"train": 16, "held_out": 4, "positions": 31, "vocabulary": 512, "model": _TINY_LLAMA},
    {"train": {"length": "4 steps", "batch": 4}},
)

WORKS: dict[str, Work] = {
    "encoder": Work(
        "encoder classifier, ragged texts, all layers train",
        _SENTENCES,
        {"train": _train(32, "2 epochs"), "optim": {"lr": 2e-5}},
        (Goal("trainer", 4.2, 3.4), Goal("trainer-tuned", 2.0, 1.5)),
        _FEW_SENTENCES,
    ),
    "encoder-frozen": Work(
        "same, lower 4 of 6 layers frozen, 5 epochs",
        _SENTENCES,
        {"train": _train(32, "5 epochs"), "freeze": {"layers": 4}, "optim": {"lr": 2e-5}},
        (
            Goal("trainer", 7, 5.2),
            Goal("trainer-tuned", 3.3, 2.5),
            Goal("trainer", 9, 6.5, ours="burnish-warm", title="same, second run on the same rows, cache warm"),
        ),
        _FEW_SENTENCES,
    ),
    "encoder-head": Work(
        "same, head only, 10 epochs",
        _SENTENCES,
        {"train": _train(32, "10 epochs"), "freeze": {"layers": "all"}, "optim": {"lr": 1e-2}},
        (Goal("trainer-tuned", 22, 16),),
        _FEW_SENTENCES,
    ),
    "causal": Work(
        "causal LM, equal rows, all labels",
        Data("stream", train=48, held_out=8, positions=255),
        {"train": _train(4, "12 steps")},
        (Goal("trainer", 2.05, 1.85), Goal("trainer-bf16", 1.22, 1.1), Goal("loop")),
        _FEW_TEXTS,
        untimed=2,
    ),
    "causal-prompts": Work(
        "causal LM, prompts masked (30 % labels)",
        Data("prompts", train=48, held_out=8, positions=255),
        {"train": _train(4, "12 steps")},
        (Goal("trainer", 2.5, 2.2), Goal("trl", 1.65, 1.45), Goal("trl-tuned")),
        _FEW_TEXTS,
        untimed=2,
    ),
    "causal-chat": Work(
        "chat rows padded by the peer to half empty",
        Data("chat", train=96, held_out=8, positions=511),
        {"train": _train(8, "12 steps")},
        (Goal("trainer", 3.7, 3.0), Goal("trl", 2.9, 2.4), Goal("trl-grouped")),
        _FEW_TEXTS,
        untimed=2,
    ),
    "memory": Work(
        "peak memory, causal LM with 50k vocabulary",
        Data("stream", train=48, held_out=2, positions=255),
        {"train": _train(16, "3 steps")},
        (Goal("trainer", 0.6, 0.6, measure="memory"),),
        _FEW_TEXTS,
    ),
    "start": Work(
        "import and first step, small model",
        replace(_SENTENCES, model=_SMALL, encoded=False),
        {"train": _train(32, "1 steps")},
        (Goal("trainer", 2, 1.3, measure="start"),),
        _FEW_SENTENCES,
    ),
    "resume": Work(
        "resume to first step after 10,000 steps",
        Data("stream", train=80_008, held_out=64, positions=15, model={**_TINY_LLAMA, "vocab_size": 8192}),
        {"train": _train(8, "10001 steps")},
        (Goal("trainer", 10, 5, measure="resume"), Goal("trainer-streamed", 10, 5, measure="resume")),
        _FEW_TEXTS,
        stop_at=10_000,
    ),
}


def measure(work: Work, repeats: int, say: Callable[[str], None]) -> list[Result]:
    """Return the results of every side, run in turns `repeats` times: A B C A B C, not A A B B C C.

    Args:
        say: is given each result as soon as it is there.
    """
    results = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        folder.mkdir()
        make(folder, work.data, work.settings, work.untimed, work.device)
        for name in work.sides:
            prepare(folder, name, work)
        for repeat in range(repeats):
            for name in work.sides:
                results.append({"side": name, "repeat": repeat, **run(folder, name, work)})
                say(json.dumps({field: results[-1][field] for field in ("side", "train", "first", "start", "memory")}))
    return results


def command_of(folder: Path, side: Side) -> list[Any]:
    """Return the module and arguments that run a side."""
    return [side.module, folder] + ([json.dumps(side.arguments), *side.options] if side.module == TRAINER else [])


def prepare(folder: Path, name: str, work: Work) -> None:
    """Make what a side finds when it is measured: a warm cache, or a run that was stopped on the way."""
    side = SIDES[name]
    if name == "burnish-warm":
        start(work, side, *command_of(folder, side), "--cache", folder.parent / "cache")
    elif work.stop_at and not (begun := folder.parent / side.module).exists():
        where = ["--output", begun] if side.is_peer else ["--run", begun, "--cache", folder.parent / "cache"]
        saving = {"save_strategy": "steps", "save_steps": work.stop_at} if side.is_peer else {}
        side = replace(side, arguments={**side.arguments, **saving})
        start(work, side, *command_of(folder, side), *where, "--stop-at", work.stop_at)


def run(folder: Path, name: str, work: Work) -> Result:
    """Return what a side measured, once."""
    side = SIDES[name]
    more: list[Any] = ["--cache", folder.parent / "cache"] if name == "burnish-warm" else []
    with tempfile.TemporaryDirectory() as place:
        if work.stop_at:
            begun = shutil.copytree(folder.parent / side.module, Path(place) / "begun")
            more = ["--output", begun, "--resume"] if side.is_peer else ["--run", begun]
            more += [] if side.is_peer else ["--cache", folder.parent / "cache"]
        return start(work, side, *command_of(folder, side), *more)


def start(work: Work, side: Side, module: str, *arguments: Any) -> Result:
    """Run a module in a process of its own, in the environment of its side where `make bench` made it."""
    python = (PEERS if side.is_peer else OURS) / "bin" / "python"
    return run_child(module, *arguments, threads=1, python=python if python.is_file() else Path(sys.executable))
