"""Answers to prompts: which tokens are targets, what is refused, and that the answers are learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import burnish
from burnish.errors import UserError
from burnish.terminal import Terminal
from helpers import session_of

ROWS = [{"q": f"Number {n}?", "a": " even" if n % 2 == 0 else " odd"} for n in range(60)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def settings(pairs: Path, folder: Path, **train: object) -> dict:
    return {
        "preset": "gpt2-nano",
        "model": {"vocab_size": 300},
        "data": {"train": str(pairs), "text": "a", "prompt": "q", "holdout": "10%"},
        "train": {"batch": 8, "sequence": 64, "precision": "fp32", **train},
        "generate": {"max_tokens": 3},
        "run": {"dir": str(folder), "threads": 1},
    }


def test_only_the_text_and_the_end_are_targets(pairs: Path, tmp_path: Path) -> None:
    session = session_of("text-generation", tmp_path / "run", **settings(pairs, tmp_path / "run"))
    tokenizer, store = session.task.tokenizer, session.stores["train"]
    assert len(store) == session.plan.data["rows"]["train"]
    for place, row in enumerate(list(session.splits.train)[:5]):
        batch = session.task.collate([store[place]])
        text, prompt = row.values["text"], row.values["prompt"]
        assert tokenizer.decode(batch.inputs["input_ids"][0]) == prompt + text
        assert tokenizer.decode(batch.targets["labels"]) == text + tokenizer.eos_token
        assert batch.weights == {"loss": len(tokenizer(text)["input_ids"]) + 1}


def test_answers_are_learned(pairs: Path, tmp_path: Path) -> None:
    """All answers are one of two words: the loss falls far below that of guessing among many tokens."""
    run = burnish.train(
        "text-generation", terminal=Terminal(quiet=True), **settings(pairs, tmp_path / "run", length="60 steps")
    )
    assert isinstance(run, burnish.Run)
    assert run.metrics["validation"]["loss"] < 0.5


def test_a_prompt_without_room_is_refused_by_row(pairs: Path, tmp_path: Path) -> None:
    with open(pairs, "a") as handle:
        handle.write(json.dumps({"q": "very " * 400, "a": "long"}) + "\n")
    with pytest.raises(UserError, match=r"pairs.jsonl:61: the prompt has .* Give a larger --train.sequence"):
        session_of("text-generation", tmp_path / "run", **settings(pairs, tmp_path / "run"))


def test_a_missing_prompt_column_is_refused(pairs: Path, tmp_path: Path) -> None:
    given = settings(pairs, tmp_path / "run")
    given["data"]["prompt"] = "query"
    with pytest.raises(UserError, match="has no column 'query'"):
        session_of("text-generation", tmp_path / "run", **given)
