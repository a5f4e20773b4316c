"""Gradual unfreezing: what trains when, on what a run does to its weights, and that a stop on the way changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import burnish
from burnish.engine import checkpoint
from burnish.errors import UserError
from burnish.terminal import Terminal
from helpers import result_of


def train(folder: Path, model: Path, rows: Path, **more: Any) -> burnish.Run:
    settings: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": str(rows),
        "freeze": {"layers": "all", "thaw": "2 steps"},
        "schedule": {"name": "constant", "warmup": "0%"},
        "checkpoint": {"every": "1 steps", "keep": 99},
        "train": {"length": "8 steps", "batch": 8, "sequence": 32, "precision": "fp32", "dropout": 0},
        "run": {"dir": str(folder)},
        **more,
    }
    run = burnish.train("text-classification", terminal=Terminal(quiet=True), **settings)
    assert isinstance(run, burnish.Run)
    return run


def changed(run: burnish.Run, after: int) -> set[str]:
    """The parts whose weights the step after this one changed."""
    folder = run.path / "checkpoints"
    before, now = (load_file(checkpoint.path_of(folder, step) / "model.safetensors") for step in (after, after + 1))
    names = {name for name, value in now.items() if not value.equal(before[name])}
    parts = {"classifier": "head", "layer.1": "top", "pooler": "top", "layer.0": "low", "embeddings": "below"}
    return {part for name in names for word, part in parts.items() if word in name}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_begin_to_train_from_the_top(
    precision: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    settings = {"length": "8 steps", "batch": 8, "sequence": 32, "precision": precision, "dropout": 0}
    run = train(tmp_path / "run", tiny_bert, reviews_file, train=settings)
    assert changed(run, 1) == {"head"}
    assert changed(run, 2) == changed(run, 3) == {"head", "top"}
    assert changed(run, 4) == {"head", "top", "low"}
    assert changed(run, 6) == {"head", "top", "low", "below"}
    assert "frozen layers: computed in every step; they begin to train later" in (run.path / "log.txt").read_text()


def test_a_stop_on_the_way_changes_nothing(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", tiny_bert, reviews_file)
    wanted = result_of(run.path)
    for step in checkpoint.steps(run.path / "checkpoints"):
        if step > 3:
            checkpoint.retire(checkpoint.path_of(run.path / "checkpoints", step))
    run.folder.metrics.unlink()
    assert result_of(train(tmp_path / "run", tiny_bert, reviews_file).path) == wanted


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"freeze": {"thaw": "2 steps"}}, "freeze.thaw: no layers are frozen at first"),
        ({"adapter": "lora", "freeze": {"layers": 1, "thaw": "2 steps"}}, "freeze.thaw: adapters leave the layers"),
        ({"parallel": {"ranks": 2}}, "freeze.thaw: layers thaw on one rank only"),
        ({"freeze": {"layers": 1, "thaw": "soon"}}, "freeze.thaw: 'soon' is not a duration"),
        ({"freeze": {"layers": 2, "thaw": "1 steps", "pattern": ["classifier*", "*pooler*"]}}, "freeze.thaw: every parameter"),
    ],
)  # fmt: skip
def test_what_cannot_thaw_is_refused(
    settings: dict, sentence: str, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(tmp_path / "run", tiny_bert, reviews_file, **settings)
    assert not (tmp_path / "run" / "config.yaml").exists()
