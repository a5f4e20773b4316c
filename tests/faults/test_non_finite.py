"""A12: a loss or gradient that is no number never reaches the weights, and nothing hides it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import burnish
from burnish.errors import GuardError
from burnish.tasks.causal_lm import TextGeneration
from burnish.terminal import Terminal
from helpers import LM

BAD_STEP = 5


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the loss of one row NaN whenever that row is computed; the row is one that step 5 uses. Returns its index."""
    row: list[int] = []
    loss = TextGeneration.loss

    def with_poison(self, model, batch):
        terms = loss(self, model, batch)
        is_bad = bool(row) and row[0] == batch.inputs["input_ids"].sum().item()
        return {"loss": terms["loss"] * math.nan} if is_bad else terms

    monkeypatch.setattr(TextGeneration, "loss", with_poison)
    return row


def settings(text_file: Path, folder: Path, policy: str, length: int = 12) -> dict:
    return {
        "model": {"preset": "gpt2-nano", "vocab_size": 300},
        "data": {"train": str(text_file), "workers": 0},
        "train": {
            "length": f"{length} steps",
            "batch": 4,
            "micro_batch": 1,
            "sequence": 32,
            "precision": "fp32",
            "evaluate_every": f"{length} steps",
        },
        "generate": {"max_tokens": 2},
        "checkpoint": {"every": "2"},
        "run": {"dir": str(folder), "on_non_finite": policy},
    }


def poison(row: list[int], text_file: Path, folder: Path) -> int:
    """Choose the first row of the bad step as the poisoned one; returns its index."""
    from burnish.api import resolve
    from burnish.run import RunFolder
    from burnish.session import Session

    config, task, _ = resolve("text-generation", settings(text_file, folder, "stop"))
    session = Session(config, task, RunFolder(folder), Terminal(quiet=True))
    session.prepare()
    session.build()
    session.join()
    index = session.job.loader.rows(BAD_STEP - 1)[0]
    ids = session.stores["train"][index]["input_ids"][:-1]
    row.append(int(ids.astype(int).sum()))
    return index


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stop_names_step_row_and_parameter(poisoned: list[int], text_file: Path, tmp_path: Path) -> None:
    index = poison(poisoned, text_file, tmp_path / "run")
    with pytest.raises(GuardError) as caught:
        burnish.train("text-generation", terminal=Terminal(quiet=True), **settings(text_file, tmp_path / "run", "stop"))
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert f"Step {BAD_STEP}: loss nan" in message
    assert f"Rows: {index} ({text_file}:" in message
    assert "First bad gradient: transformer.wte.weight" in message
    from burnish.engine import checkpoint

    newest, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None and newest.name == f"step-{BAD_STEP - 1:06d}"
    weights = checkpoint.read(newest, "model")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_skip_is_a_step_without_update(poisoned: list[int], text_file: Path, tmp_path: Path) -> None:
    """Bit for bit the run in which that step makes no update, which is done here by another path (a rollback's window)."""
    poison(poisoned, text_file, tmp_path / "skip")
    run = burnish.train(
        "text-generation", terminal=Terminal(quiet=True), **settings(text_file, tmp_path / "skip", "skip")
    )
    bad = [line for line in lines_of(run.path) if "non_finite" in line]
    assert [line["step"] for line in bad] == [BAD_STEP]
    assert bad[0]["loss"] is None and bad[0]["non_finite"]["loss"] == "nan" and len(bad[0]["non_finite"]["rows"]) == 1
    other = burnish.train(
        "text-generation", terminal=Terminal(quiet=True), **settings(text_file, tmp_path / "rollback", "rollback")
    )
    passed = [line["step"] for line in lines_of(other.path) if "non_finite" in line]
    assert passed == [BAD_STEP] and other.metrics["skipped_steps"] == [BAD_STEP]
    steps = [line["step"] for line in lines_of(other.path) if "loss" in line]
    assert steps == list(range(1, 13)), "a rollback leaves no step twice in the log"
    for name in ("model/model.safetensors", "checkpoints/step-000012/optimizer.safetensors"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes()


def test_more_skips_than_sound_stop_the_run(monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path) -> None:
    """When every loss is NaN, skipping ends after three steps instead of pretending to train."""
    loss = TextGeneration.loss
    monkeypatch.setattr(TextGeneration, "loss", lambda *a: {"loss": loss(*a)["loss"] * math.nan})
    with pytest.raises(GuardError, match="more than is sound"):
        burnish.train("text-generation", terminal=Terminal(quiet=True), **settings(text_file, tmp_path / "run", "skip"))


def test_a_real_overflow_stops_with_exit_code_3(text_file: Path, tmp_path: Path) -> None:
    """Nothing patched: a learning rate of a million makes the loss overflow."""
    from helpers import burnish as command

    done = command(
        *LM, "--data.train", text_file, "--optim.lr", "1e6", "--optim.clip", "0", "--optim.name", "sgd", "--train.length",
        "40 steps", "--run.dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 3, done.stdout + done.stderr
    assert "is not" not in done.stderr and "Step " in done.stderr and "Traceback" not in done.stderr
