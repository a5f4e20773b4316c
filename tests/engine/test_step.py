"""B1: the gradient does not depend on how the global batch is cut; a mean of means would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish.api import resolve
from burnish.data.loader import collate
from burnish.engine.step import accumulate, arranged, seed_device
from burnish.run import RunFolder
from burnish.session import Session
from burnish.task import Batch
from burnish.terminal import Terminal
from helpers import apart, sentiment_rows, trained, weights_of

TOLERANCE = 1e-5
"""Relative global L2 of the gradient in float32; measured noise is about fifty times below, the naive mean far above."""


def session_of(task: str, folder: Path, **settings) -> Session:
    config, task_class, _ = resolve(task, {"run": {"dir": str(folder)}, **settings})
    session = Session(config, task_class, RunFolder(folder), Terminal(quiet=True))
    session.prepare()
    session.build()
    session.join()
    return session


@pytest.fixture
def sessions(
    text_file: Path, reviews_file: Path, alike_file: Path, tiny_bert: Path, tmp_path: Path
) -> dict[str, Session]:
    train = {"batch": 8, "precision": "fp32", "dropout": 0.0}
    lm_rows = tmp_path / "ragged.jsonl"  # one store of ragged rows: the last sequence is short
    lm_rows.write_text("".join(f'{{"text": "{text}"}}\n' for text, _ in sentiment_rows(40)))
    return {
        "text-generation": session_of(
            "text-generation",
            tmp_path / "lm",
            preset="gpt2-nano",
            model={"vocab_size": 300},
            data={"train": str(lm_rows)},
            train={**train, "sequence": 48},
        ),
        "text-classification": session_of(
            "text-classification", tmp_path / "cls", model=str(tiny_bert), data=str(reviews_file), train=train
        ),
        "sentence-similarity": session_of(
            "sentence-similarity", tmp_path / "sim", model=str(tiny_bert), data=str(alike_file), train=train
        ),
    }


def gradient(session: Session, batches: list[Batch]) -> tuple[float, torch.Tensor]:
    model = session.job.model
    model.zero_grad(set_to_none=True)
    loss = accumulate(model, session.job.stack, session.task, batches, "cpu", seed=0)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cut(session: Session, rows: list[int], sizes: list[int]) -> list[Batch]:
    """Return the rows as micro-batches of the given sizes."""
    batches, start = [], 0
    for size in sizes:
        batches.append(collate(session.stores["train"], session.task, rows[start : start + size]))
        start += size
    assert start == len(rows)
    return batches


def ragged(session: Session) -> list[int]:
    """Return eight rows whose numbers of targets differ."""
    store = session.stores["train"]
    return sorted(range(len(store)), key=lambda i: int(store.lengths()[i]))[:4] + list(range(4, 8))


@pytest.mark.parametrize("task", ["text-generation", "text-classification", "sentence-similarity"])
@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1] * 8, [3, 5], [1, 7]])
def test_micro_batches_do_not_change_the_gradient(sessions: dict[str, Session], task: str, sizes: list[int]) -> None:
    session = sessions[task]
    rows = ragged(session)
    loss, whole = gradient(session, cut(session, rows, [8]))
    split_loss, split = gradient(session, cut(session, rows, sizes))
    assert abs(split_loss / loss - 1) <= TOLERANCE
    assert float((split - whole).norm() / whole.norm()) <= TOLERANCE


@pytest.mark.parametrize("task", ["text-generation", "text-classification", "sentence-similarity"])
def test_mean_of_means_fails_the_same_test(sessions: dict[str, Session], task: str) -> None:
    """What other trainers do, an average of each micro-batch's own average, is caught by the tolerance."""
    session = sessions[task]
    rows = ragged(session)
    _, whole = gradient(session, cut(session, rows, [8]))
    model = session.job.model
    model.zero_grad(set_to_none=True)
    batches = cut(session, rows, [1, 7])
    for batch in batches:
        (session.task.loss(model, batch)["loss"] / batch.weights["loss"] / len(batches)).backward()
    naive = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float((naive - whole).norm() / whole.norm()) > 100 * TOLERANCE


def test_a_comparison_within_each_micro_batch_fails_the_same_test(sessions: dict[str, Session]) -> None:
    """Also one whose sums are divided as they should be: the other micro-batches' rows are missing from it."""
    session = sessions["sentence-similarity"]
    rows = ragged(session)
    _, whole = gradient(session, cut(session, rows, [8]))
    session.job.model.zero_grad(set_to_none=True)
    for batch in cut(session, rows, [4, 4]):
        (session.task.loss(session.job.model, batch)["loss"] / 8).backward()
    naive = torch.cat([p.grad.flatten() for p in session.job.model.parameters() if p.grad is not None])
    assert float((naive - whole).norm() / whole.norm()) > 1000 * TOLERANCE


def test_both_passes_of_a_comparison_see_the_same_dropout(alike_file: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """Against one pass whose activations are all kept, with the masks that each micro-batch draws."""
    train = {"batch": 8, "precision": "fp32", "dropout": 0.3}
    session = session_of(
        "sentence-similarity", tmp_path / "run", model=str(tiny_bert), data=str(alike_file), train=train
    )
    task, model = session.task, session.job.model
    batches = cut(session, ragged(session), [3, 5])
    loss, found = gradient(session, batches)
    model.zero_grad(set_to_none=True)
    made = []
    for index, batch in enumerate(batches):
        seed_device("cpu", index)
        with arranged(session.job.stack, batch):
            made.append(task.represent(model, batch))
    identity = torch.cat([batch.targets["identity"] for batch in batches])
    kept = task.compare(torch.cat(made), {"identity": identity})["loss"] / 8
    kept.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert loss == pytest.approx(float(kept), rel=TOLERANCE)
    assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE
    assert abs(gradient(session, cut(session, ragged(session), [8]))[0] / loss - 1) > 100 * TOLERANCE  # other masks


def test_a_hundred_steps_stay_together(text_file: Path, tmp_path: Path) -> None:
    """Loss of each of 100 steps and the weights after them, against one micro-batch per step; the last step is short."""

    def run(micro_batch: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        session = trained(
            "text-generation",
            tmp_path / str(micro_batch),
            model={"preset": "gpt2-nano", "vocab_size": 300},
            data=str(text_file),
            train={
                "length": "798 rows", "batch": 8, "micro_batch": micro_batch, "sequence": 24, "precision": "fp32",
                "evaluate_every": "100 steps",
            },
        )  # fmt: skip
        return [line["loss"] for line in session.folder.log_lines() if "loss" in line], weights_of(session)

    losses, weights = run(8)
    assert len(losses) == 100
    for micro_batch in (3, 1):
        found, changed = run(micro_batch)
        assert max(abs(b / a - 1) for a, b in zip(losses, found, strict=True)) <= TOLERANCE
        assert apart(changed, weights) <= 2 * TOLERANCE
