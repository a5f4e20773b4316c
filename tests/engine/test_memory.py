"""When memory runs out: fewer rows at once with the same result, then one sentence; what is chosen as memory shrinks."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.api import resolve
from burnish.cli import main
from burnish.engine import checkpoint
from burnish.engine.guard import MEMORY, OutOfMemory, StopSignal, memory_watched
from burnish.engine.step import accumulate
from burnish.errors import GuardError, Stopped
from burnish.models.precision import Weights
from burnish.plan import derive
from burnish.session import Session
from burnish.task import Batch
from burnish.tasks.causal_lm import TextGeneration
from burnish.tasks.text_classification import TextClassification
from helpers import apart, session_of, trained, weights_of

TOLERANCE = 1e-6
"""Relative global L2 of the final weights, float32."""
TASKS = {"text-generation": TextGeneration, "text-classification": TextClassification}

Given = dict[str, dict[str, Any]]


@pytest.fixture
def given(text_file: Path, reviews_file: Path, tiny_bert: Path) -> Given:
    train = {"batch": 8, "length": "5 steps", "precision": "fp32", "dropout": 0.0}
    common = {"optim": {"lr": 1e-3}, "checkpoint": {"every": "1000 steps"}}
    return {
        "text-generation": {
            "preset": "gpt2-nano",
            "model": {"vocab_size": 300},
            "data": str(text_file),
            "train": {**train, "sequence": 24},
            **common,
        },
        "text-classification": {"model": str(tiny_bert), "data": str(reviews_file), "train": train, **common},
    }


Limit = Callable[..., list[int]]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Let a loss ask for more memory than any machine has: `memory(task, rows=4)` for more than 4 rows at once.

    Returns the rows of each micro-batch that was computed whole, in a list that grows.
    """

    def limit(task: str, rows: int, after: int = 0, on_failure: Callable[[], None] = lambda: None) -> list[int]:
        real = TASKS[task].loss
        computed: list[int] = []

        def loss(self: Any, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
            sums = real(self, model, batch)
            if not (model.training and batch.rows and torch.is_grad_enabled()):
                return sums
            if len(batch.rows) > rows and len(computed) >= after:
                on_failure()
                torch.empty(2**50)
            computed.append(len(batch.rows))
            return sums

        monkeypatch.setattr(TASKS[task], "loss", loss)
        return computed

    return limit


def plan_of(run: Session) -> dict[str, Any]:
    return json.loads(run.folder.plan.read_text())


def losses(run: Session) -> list[float]:
    return [line["loss"] for line in run.folder.log_lines() if "loss" in line]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_smaller_micro_batch_goes_on_with_the_same_result(
    given: Given, memory: Limit, tmp_path: Path, task: str, packing: str
) -> None:
    settings = given[task]
    settings["train"] |= {"packing": packing}
    small = {**settings, "train": {**settings["train"], "micro_batch": 2}}
    wanted = trained(task, tmp_path / "small", **small)
    computed = memory(task, rows=3)  # 8, then 4, then 2 at once
    found = trained(task, tmp_path / "out-of-memory", **settings)
    assert wanted.plan.arrangement == ("padded" if packing == "off" else "packed")
    assert apart(weights_of(found), weights_of(wanted)) <= TOLERANCE
    assert max(abs(one / other - 1) for one, other in zip(losses(found), losses(wanted), strict=True)) <= TOLERANCE
    assert plan_of(wanted)["micro_batch"] == 2
    assert plan_of(found)["micro_batch"] == 2
    assert plan_of(found)["why"]["micro_batch"] == "halved when memory ran out"
    assert max(computed) <= 2
    text = found.folder.text_log.read_text()
    assert [f"going on with {rows} rows at once; the result stays the same" in text for rows in (8, 4, 2, 1)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_in_the_middle_of_a_step_and_of_a_run(given: Given, memory: Limit, tmp_path: Path) -> None:
    """A step that was half computed counts nothing of that half; another sitting begins with the smaller micro-batch."""
    settings = given["text-generation"]
    settings["train"] |= {"micro_batch": 4}
    whole = trained("text-generation", tmp_path / "whole", **settings)
    computed = memory("text-generation", rows=3, after=5)  # in the second micro-batch of the third step
    found = trained("text-generation", tmp_path / "found", **settings)
    assert computed == [4, 4, 4, 4, 4, *[2, 2, 2, 2] * 3]
    assert apart(weights_of(found), weights_of(whole)) <= TOLERANCE
    assert plan_of(found)["micro_batch"] == 2
    again = session_of("text-generation", tmp_path / "found", **settings)
    again.join()
    assert again.resuming and again.job.loader.micro_batch == 2


def test_half_a_step_counted_twice_would_be_seen(
    given: Given, memory: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = given["text-generation"]
    settings["train"] |= {"micro_batch": 4, "length": "2 steps"}
    whole = trained("text-generation", tmp_path / "whole", **settings)
    memory("text-generation", rows=3, after=1)
    forget, calls = Weights.forget_gradients, [0]

    def forgetful(self: Weights) -> None:
        calls[0] += 1
        if calls[0] != 2:
            forget(self)

    monkeypatch.setattr(Weights, "forget_gradients", forgetful)
    found = trained("text-generation", tmp_path / "found", **settings)
    assert apart(weights_of(found), weights_of(whole)) > 100 * TOLERANCE


def test_a_signal_that_comes_with_it_still_saves(given: Given, memory: Limit, tmp_path: Path) -> None:
    """The pass over the hooks after a halving is no start of a run: what is due there is done."""
    settings = given["text-generation"]
    settings["train"] |= {"evaluate_every": "1000 steps"}
    memory("text-generation", rows=4, after=3, on_failure=lambda: os.kill(os.getpid(), signal.SIGTERM))
    session = session_of("text-generation", tmp_path / "run", **settings)
    stop = StopSignal()
    with session.folder.locked(), stop.installed():
        session.begin()
        with pytest.raises(Stopped, match="saved at step 3"):
            session.train(stop)
    session.terminal.close()
    assert checkpoint.steps(session.folder.checkpoints) == [3]


def test_one_row_that_does_not_fit_is_a_guards_sentence(
    given: Given, memory: Limit, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    computed = memory("text-generation", rows=0, after=16)  # two steps of eight single rows
    arguments = [
        "train", "text-generation", "--preset", "gpt2-nano", "--model.vocab-size", "300", "--data.train", text_file,
        "--train.sequence", "24", "--train.batch", "8", "--train.micro-batch", "1", "--train.length", "5 steps",
        "--train.precision", "fp32", "--checkpoint.every", "1 steps", "--run.dir", tmp_path / "run",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == GuardError.exit_code == 3
    assert len(computed) == 16
    said = capsys.readouterr().err
    assert f"burnish: {MEMORY}" in " ".join(said.split()) and "Traceback" not in said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [1, 2]


def test_only_exhausted_memory_is_taken_for_it() -> None:
    with pytest.raises(OutOfMemory), memory_watched():
        torch.empty(2**50)
    with pytest.raises(OutOfMemory), memory_watched():
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_watched():
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize("task", TASKS)
def test_recomputed_activations_give_the_same_gradient(given: Given, tmp_path: Path, task: str) -> None:
    """Of a whole step, dropout included: what is computed again draws the masks it drew before."""

    def gradient(mode: str) -> tuple[dict[str, torch.Tensor], int]:
        settings = given[task]
        train = {**settings["train"], "recompute": mode, "micro_batch": 3, "dropout": 0.1}
        session = session_of(task, tmp_path / "none", **{**settings, "train": train})
        session.join()
        job, kept = session.job, 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        batches = job.loader.step(0)
        assert len(batches) == 3
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            accumulate(job.model, job.stack, job.task, batches, "cpu", 1, job.group)
        grads = {name: value.grad.clone() for name, value in job.weights.exact.items() if value.grad is not None}
        return grads, kept

    none, most = gradient("none")
    assert most > 0
    for mode in ("selective", "full"):
        found, kept = gradient(mode)
        assert apart(found, none) <= TOLERANCE, mode
        assert kept < most, mode


# -- what is chosen ----------------------------------------------------------------------------------------------------


def chosen(monkeypatch: pytest.MonkeyPatch, free: float, **train: Any) -> tuple[int, str, dict[str, str]]:
    """Return micro-batch, recomputation and reasons for a model of 12 layers, 64 rows of 512 positions, `free` bytes."""
    from transformers import GPT2Config

    monkeypatch.setattr(derive, "_free_memory", lambda device: int(free))
    config, _, _ = resolve("text-generation", {"preset": "gpt2-nano", "train": {"batch": 64, **train}})
    model = GPT2Config(n_layer=12, n_embd=768, n_head=12)
    numbers = derive.activations(model, "fp32", 512, None)
    return derive.choose_micro_batch(config, "cpu", numbers, longest=512, states=int(1e9))


def test_less_memory_computes_fewer_rows_then_activations_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = [10**exponent for exponent in (12.0, 10.7, 10.2, 9.9, 9.7, 9.5, 9.45, 9.4, 9.3, 9.2, 9.1, 8.0)]
    found = [chosen(monkeypatch, free) for free in memories]
    modes = [mode for _, mode, _ in found]
    assert found[0] == (
        64,
        "none",
        {"recompute": "activations fit in memory", "micro_batch": "the whole batch fits in memory"},
    )
    assert list(dict.fromkeys(modes)) == ["none", "selective", "full"]  # each way, and never back
    for mode in dict.fromkeys(modes):
        rows = [rows for rows, own, _ in found if own == mode]
        assert rows == sorted(rows, reverse=True), mode
    assert found[-1][0] == 1  # there is always one row; if that does not fit either, the guard says so
    for rows, mode, why in found[1:]:
        assert why["recompute"].startswith("activations fit" if mode == "none" else "more activations would not fit")
        assert why["micro_batch"].startswith("about " if rows < 64 else "the whole batch")


def test_what_the_user_gives_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (1e12, 1.1e9):
        assert chosen(monkeypatch, free, micro_batch=5)[0] == 5
        rows, mode, why = chosen(monkeypatch, free, micro_batch=5, recompute="selective")
        assert (rows, mode, why) == (5, "selective", {})
        assert chosen(monkeypatch, free, recompute="none")[1] == "none"
    assert chosen(monkeypatch, 1e12, micro_batch=500)[0] == 64
    # Five rows are wanted: activations are computed again where only fewer would fit.
    per_row = 512 * 768 * 4 * 34 * 12
    four = 1e9 + 2 * 4.5 * per_row
    assert chosen(monkeypatch, four)[1] == "none"
    assert chosen(monkeypatch, four, micro_batch=5)[1] == "selective"


def test_half_of_the_free_memory_is_what_a_row_costs_times_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 34 numbers a position and layer, 512 positions of 768 numbers of 4 bytes, 12 layers."""
    per_row = 512 * 768 * 4 * 34 * 12
    assert chosen(monkeypatch, 1e9 + 2 * 20.5 * per_row)[:2] == (20, "none")
