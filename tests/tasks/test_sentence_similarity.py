"""Sentence similarity: the loss by its formula, what is no negative, figures by hand, vectors elsewhere, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.data.loader import collate
from burnish.errors import UserError
from burnish.session import Session
from burnish.tasks.sentence_similarity import SentenceSimilarity
from burnish.terminal import Terminal
from helpers import said_by_card, sentences, session_of

TASK = "sentence-similarity"
WORDS = [" ".join(text.rstrip(".").lower().split()[:8]) for text in sentences(60, seed=7)]


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def session(path: Path, model: Path, folder: Path, data: dict[str, Any] | None = None, **more: Any) -> Session:
    given: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"train": str(path), "holdout": 0, **(data or {})},
        "train": {"precision": "fp32", "batch": 8, "dropout": 0},
    }
    return session_of(TASK, folder, **given, **more)


def plain_vectors(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return unit vectors by plain transformers, one text at a time."""
    found = []
    for text in texts:
        with torch.no_grad():
            found.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(found), dim=-1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negative", [None, "negative"])
def test_the_loss_is_that_of_the_formula(
    tiny_bert: Path, tmp_path: Path, symmetric: bool, negative: str | None
) -> None:
    """In-batch softmax over cosines, by plain transformers."""
    rows = [dict(zip(("anchor", "positive", "negative"), WORDS[n : n + 3], strict=True)) for n in range(0, 24, 3)]
    made = session(
        rows_file(tmp_path, rows), tiny_bert, tmp_path / "run", {"negative": negative},
        task={"symmetric": symmetric, "scale": 7.0},
    )  # fmt: skip
    batch = collate(made.stores["train"], made.task, list(range(8)))
    with torch.no_grad():
        found = float(made.task.loss(made.fit.model.eval(), batch)["loss"]) / batch.weights["loss"]
    tokenizer = made.task.tokenizer
    texts = {name: [row[name] for row in rows] for name in rows[0]}
    anchor, positive, other = (plain_vectors(made.fit.model, tokenizer, texts[name]) for name in texts)
    candidates = torch.cat([positive, other]) if negative else positive
    wanted = torch.nn.functional.cross_entropy(7 * anchor @ candidates.T, torch.arange(8))
    if symmetric:
        wanted = (wanted + torch.nn.functional.cross_entropy(7 * positive @ anchor.T, torch.arange(8))) / 2
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_equal_texts_are_no_negatives_of_each_other(tiny_bert: Path, tmp_path: Path) -> None:
    """Two rows with one positive: what is left is as if the other row's positive were not there."""
    rows = [{"anchor": WORDS[n], "positive": WORDS[20 + min(n, 2)]} for n in range(4)]  # the last two share theirs
    made = session(rows_file(tmp_path, rows), tiny_bert, tmp_path / "run")
    batch = collate(made.stores["train"], made.task, [0, 1, 2, 3])
    with torch.no_grad():
        vectors = made.task.represent(made.fit.model.eval(), batch)
        losses = made.task._losses(vectors, batch.targets)
        fewer = made.task._losses(vectors[:3], {"identity": batch.targets["identity"][:3]})
    assert float(losses[2]) == pytest.approx(float(fewer[2]), rel=1e-5)
    assert float(losses[0]) > float(fewer[0])


def test_places_and_figures_by_hand() -> None:
    task = SentenceSimilarity(SentenceSimilarity.Settings(candidates=3), None, {})
    anchor = np.eye(3, dtype=np.float32)
    positive = np.array([[0.6, 0.8, 0], [0.8, 0.6, 0], [0.0, 0.8, 0.6]], np.float32)
    vectors = np.concatenate([np.stack([anchor, positive], 1), np.stack([anchor, anchor], 1)[:2]])
    joined = task.join({"vectors": vectors, "identity": np.arange(10).reshape(5, 2)})
    assert joined["place"].tolist() == [2, 3, 1, 1, 1]  # the last two rows are a group of their own
    found = task.metrics({"place": np.array([1, 2, 4, 1]), "loss": np.ones(4)})
    assert found == {"mrr": pytest.approx((1 + 0.5 + 0.25 + 1) / 4), "recall_at_1": 0.5, "loss": 1.0}


def test_graded_pairs_learn_the_cosine(tiny_bert: Path, tmp_path: Path) -> None:
    """Scores from 0 to 5, as STS has them; the correlation is that of scipy's definition, by ranks."""
    rows = [
        {"a": text, "b": text if n % 2 else " ".join(reversed(WORDS[-n].split())), "points": 5.0 * (n % 2)}
        for n, text in enumerate(WORDS)
    ]
    names = {"anchor": "a", "positive": "b", "score": "points"}
    run = burnish.train(
        TASK, terminal=Terminal(quiet=True), model=str(tiny_bert),
        data={"train": str(rows_file(tmp_path, rows)), **names}, optim={"lr": 2e-3},
        train={"length": "30 steps", "batch": 8, "micro_batch": 4, "precision": "fp32"}, run={"dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert isinstance(run, burnish.Run)
    assert run.metrics["validation"]["spearman"] > 0.7 and set(run.metrics["validation"]) == {
        "spearman",
        "pearson",
        "loss",
    }
    made = session(rows_file(tmp_path, rows), tiny_bert, tmp_path / "one", names)
    assert not made.task.compares
    batch = collate(made.stores["train"], made.task, list(range(6)))
    model, tokenizer = made.fit.model.eval(), made.task.tokenizer
    one, other = (plain_vectors(model, tokenizer, [row[name] for row in rows[:6]]) for name in ("a", "b"))
    wanted = ((one * other).sum(-1) - torch.tensor([row["points"] / 5 for row in rows[:6]])).square().sum()
    with torch.no_grad():
        assert float(made.task.loss(model, batch)["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_vectors_are_those_of_plain_transformers_and_the_folder_says_how(
    alike_file: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    run = burnish.train(
        TASK, terminal=Terminal(quiet=True), model=str(tiny_bert), data=str(alike_file), optim={"lr": 2e-3},
        train={"length": "30 steps", "batch": 16, "precision": "fp32"}, run={"dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert isinstance(run, burnish.Run) and run.metrics["validation"]["recall_at_1"] > 0.5
    from transformers import AutoModel, AutoTokenizer

    folder = run.folder.model
    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()
    found = torch.tensor([answer["embedding"] for answer in run.predict(WORDS[:3])])
    assert torch.allclose(found, plain_vectors(model, tokenizer, WORDS[:3]), atol=1e-5)
    assert said_by_card(run.path).startswith("tensor([")
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].split(".")[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all((folder / module["path"]).is_dir() for module in modules)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("data", "row", "message"),
    [
        ({"negative": "n", "score": "s"}, {"n": "x", "s": 1}, "data.score: graded pairs have no negatives"),
        ({"score": "s"}, {"s": "good"}, r"rows.jsonl:1: the score 'good' is no number; give one, such as 0.8"),
        ({"score": "s"}, {"s": 2}, "data.score: all training rows have the same score, 2"),
        ({}, {"positive": 3}, "'positive' is int, not text"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny_bert: Path, tmp_path: Path, data: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    rows = [{"anchor": text, "positive": text, **row} for text in WORDS[:3]]
    with pytest.raises(UserError, match=message):
        session(rows_file(tmp_path, rows), tiny_bert, tmp_path / "run", data)


def test_the_width_of_vectors_is_found_whatever_a_config_calls_it(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_embd=48).save_pretrained(str(tmp_path))
    SentenceSimilarity(SentenceSimilarity.Settings(), None, {}).complete(tmp_path)
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 48


def test_true_is_no_score(tmp_path: Path) -> None:
    from burnish.task import Row

    rows = [Row({"anchor": "a", "positive": "b", "score": score}, f"rows:{score}") for score in (0.5, True)]
    with pytest.raises(UserError, match="rows:True: the score True is no number"):
        SentenceSimilarity.learn(rows, SentenceSimilarity.Settings())
