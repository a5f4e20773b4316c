"""Text classification: pairs, several labels, numbers, class weights and thresholds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import burnish
from burnish.errors import UserError
from burnish.session import Session
from burnish.tasks.classification import _best_threshold
from burnish.terminal import Terminal
from helpers import sentences, session_of

WORDS = ("good", "bad", "old")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return texts that hold some of three words, and which."""
    draw = random.Random(seed)
    rows = []
    for text in sentences(count, seed):
        there = [word for word in WORDS if draw.random() < (0.5 if word != "old" else 0.2)]
        plain = [word for word in text.split()[:4] if word.strip(".").lower() not in WORDS]
        rows.append({"text": " ".join(plain + there), "label": there})
    return rows


def settings(folder: Path, model: Path, data: Path, /, **more: Any) -> dict[str, Any]:
    train = {"length": "150 steps", "batch": 16, "precision": "fp32", "dropout": 0, **more.pop("train", {})}
    columns = more.pop("data", {})
    return {
        "model": {"path": str(model)},
        "data": {"train": str(data), **columns},
        "train": train,
        "optim": {"lr": 5e-3},
        "run": {"dir": str(folder), "threads": 1},
        **more,
    }


def trained(folder: Path, model: Path, data: Path, /, **more: Any) -> burnish.Run:
    run = burnish.train("text-classification", terminal=Terminal(quiet=True), **settings(folder, model, data, **more))
    assert isinstance(run, burnish.Run)
    return run


def session(folder: Path, model: Path, data: Path, /, **more: Any) -> Session:
    return session_of("text-classification", folder, **settings(folder, model, data, **more))


def test_several_labels_are_learned_each_by_itself(tmp_path: Path, tiny_bert: Path) -> None:
    data = write(tmp_path / "rows.jsonl", told(300))
    run = trained(tmp_path / "run", tiny_bert, data, train={"length": "400 steps"})
    assert set(run.metrics["validation"]) == {"macro_f1", "micro_f1", "exact_match", "loss"}
    assert run.metrics["validation"]["macro_f1"] > 0.9
    assert len(run.metrics["decided"]["thresholds"]) == 3
    answer = run.predict("the king good old")
    assert answer["labels"] == ["good", "old"] and set(answer["scores"]) == set(WORDS)
    assert run.evaluate()["metrics"] == pytest.approx(run.metrics["validation"], rel=1e-6)


def test_labels_in_one_column_are_taken_apart(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{**row, "label": "|".join(row["label"])} for row in told(60) if row["label"]]
    made = session(tmp_path / "run", tiny_bert, write(tmp_path / "rows.jsonl", rows), task={"separator": "|"})
    assert made.task.facts["kind"] == "multi" and made.task.facts["labels"] == sorted(WORDS)


def test_numbers_are_learned(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": row["text"], "label": len(row["label"]) / 2} for row in told(300)]
    run = trained(tmp_path / "run", tiny_bert, write(tmp_path / "rows.jsonl", rows))
    assert run.metrics["validation"]["pearson"] > 0.9 and run.metrics["validation"]["mean_absolute_error"] < 0.25
    assert run.predict("the king good old")["value"] == pytest.approx(1.0, abs=0.4)


def test_pairs_are_judged_together(tmp_path: Path, tiny_bert: Path) -> None:
    draw = random.Random(0)
    rows = []
    for text in sentences(400):
        first, second = draw.choice(["good", "bad"]), draw.choice(["good", "bad"])
        plain = [word for word in text.split()[:3] if word.strip(".").lower() not in WORDS]
        rows.append({"text": " ".join([*plain, first]), "other": second, "label": "yes" if second == "good" else "no"})
    data = write(tmp_path / "rows.jsonl", rows)
    made = session(tmp_path / "other", tiny_bert, data, data={"pair": "other"})
    batch = made.task.collate([made.stores["train"][0]])
    row = next(iter(made.splits.train))
    theirs = made.task.tokenizer(row.values["text"], row.values["pair"], return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], theirs["input_ids"])
    assert torch.equal(batch.inputs["token_type_ids"], theirs["token_type_ids"])
    run = trained(tmp_path / "run", tiny_bert, data, data={"pair": "other"})
    assert run.metrics["validation"]["accuracy"] > 0.9  # which the first text does not tell
    assert run.predict({"text": "the bad", "pair": "good"})["label"] == "yes"
    assert run.predict({"text": "the good", "other": "bad"})["label"] == "no"
    with pytest.raises(UserError, match="Input 1 is one value; give its columns text, other"):
        run.predict("the bad")
    with pytest.raises(UserError, match="Input 1: has no 'other'; an input needs text, other"):
        run.predict({"text": "the bad"})


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_balanced_labels_count_the_same_in_all(kind: str, tmp_path: Path, tiny_bert: Path) -> None:
    """Against torch's own weighting, and the same however a step is cut."""
    rows = told(80)
    if kind == "single":
        rows = [{"text": row["text"], "label": "old" if "old" in row["label"] else "other"} for row in rows]
    made = session(
        tmp_path / "run", tiny_bert, write(tmp_path / "rows.jsonl", rows), task={"class_weights": "balanced"}
    )
    assert made.fit is not None
    task, store, counts = made.task, made.stores["train"], np.array(made.task.facts["counts"])
    whole = task.collate([store[row] for row in range(len(store))])
    assert whole.weights["loss"] == pytest.approx(len(store) * (1 if kind == "single" else 3), rel=1e-6)
    with torch.no_grad():
        logits = made.fit.model.eval()(**whole.inputs).logits
        found = float(task.loss(made.fit.model, whole)["loss"]) / whole.weights["loss"]
    if kind == "single":
        weight = torch.tensor(len(store) / (len(counts) * counts), dtype=torch.float32)
        wanted = functional.cross_entropy(logits, whole.targets["labels"], weight=weight)
    else:
        yes = torch.tensor(len(store) / (2 * counts), dtype=torch.float32)
        no = torch.tensor(len(store) / (2 * (len(store) - counts)), dtype=torch.float32)
        labels = whole.targets["labels"]
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        wanted = (each * torch.where(labels == 1, yes, no)).sum() / whole.weights["loss"]
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_the_best_threshold_lies_between_two_probabilities() -> None:
    scores, true = np.array([0.9, 0.8, 0.6, 0.3, 0.2]), np.array([1, 1, 0, 1, 0])
    assert _best_threshold(scores, true) == pytest.approx(0.25)  # F1 6/7, against 4/5 at 0.7
    assert _best_threshold(np.array([0.7, 0.7, 0.1]), np.array([1, 0, 0])) == pytest.approx(0.4)
    assert _best_threshold(scores, np.zeros(5)) == 0.5


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        (
            [["a"], ["b"]],
            {"kind": "single"},
            r"rows.jsonl:1: the label \['a'\] is not one label. Give --task.kind multi",
        ),
        (
            ["x", 0.5],
            {"kind": "regression"},
            "rows.jsonl:1: the label 'x' is no number. Give one, or --task.kind single",
        ),
        ([0.5, 0.5], {}, "data.label: all training rows have the same number, 0.5"),
    ],
)
def test_labels_of_another_kind_are_refused_by_row(
    rows: list, task: dict, message: str, tmp_path: Path, tiny_bert: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"text": "the king", "label": label} for label in rows])
    with pytest.raises(UserError, match=message):
        session(tmp_path / "run", tiny_bert, data, task=task, data={"holdout": "0%"})
