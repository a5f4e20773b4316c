"""Ranked answers: ratings are the model's own probabilities, the order and the drops follow, wrong rows are refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish.config import GenerateSettings
from burnish.data.tokenizer import train_tokenizer
from burnish.errors import UserError
from burnish.generate.rank import UNSAFE, WEIGHTS, answer_prompt, ranked, rate, rating_prompt
from burnish.models.load import build, make_config
from burnish.models.scratch import find_preset
from burnish.terminal import Terminal, show_answer

QUIET = Terminal(quiet=True)
SETTINGS = GenerateSettings(max_tokens=4, candidates=6, temperature=1.0)
GOOD, POOR = " the king sees the river", " stone stone stone"


def toy_rows() -> list[dict[str, str]]:
    """Return rows in which one answer is good in all, another in nothing and unsafe."""
    rows = []
    for number, (answer, good) in product(range(30), ((GOOD, 1), (POOR, 0))):
        context = f"Who goes {number}?"
        rows.append({"prompt": answer_prompt(context), "text": answer})
        for attribute in (*WEIGHTS, UNSAFE):
            rating = good if attribute != UNSAFE else 1 - good
            rows.append({"prompt": rating_prompt(context, answer.strip(), attribute), "text": f" {rating}"})
    return rows


def settings(file: Path, folder: Path, **task: Any) -> dict[str, Any]:
    return {
        "preset": "lamda-nano", "model": {"vocab_size": 400}, "data": {"train": str(file), "prompt": "prompt"},
        "task": {"rates": True, **task}, "optim": {"lr": 3e-3}, "run": {"dir": str(folder)},
        "train": {"length": "90 steps", "batch": 32, "sequence": 64, "precision": "fp32"},
        "generate": {"max_tokens": 16, "candidates": 8, "temperature": 1.0},
    }  # fmt: skip


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small model with random weights and a tokenizer that has no token of its own for ` 1`."""
    tokenizer = train_tokenizer(
        tmp_path_factory.mktemp("rank") / "tokenizer", ["the king sees the old river. " * 9], 280
    )
    torch.manual_seed(0)
    options = {**find_preset("lamda-nano").options, "vocab_size": 280}
    model, _ = build("AutoModelForCausalLM", make_config({"model_type": "lamda", **options}, {}, None), None)
    return model.eval(), tokenizer


def test_a_rating_is_the_probability_of_one_against_zero(pair: tuple[Any, Any]) -> None:
    """Whatever tokens the ratings have, and whatever else is rated at once."""
    model, tokenizer = pair
    prompts = [rating_prompt("the king? " * count, "the river", "SENSIBLE") for count in (1, 4, 2)]
    assert len(tokenizer(" 1", add_special_tokens=False)["input_ids"]) > 1
    for prompt, found in zip(prompts, rate(model, tokenizer, prompts), strict=True):
        likelihood = []
        for rating in (1, 0):
            ids = torch.tensor([tokenizer(f"{prompt} {rating}", add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            likelihood.append(float(logs.sum()))
        assert found == pytest.approx(1 / (1 + 2.718281828 ** (likelihood[1] - likelihood[0])), rel=1e-4)


def test_the_order_follows_from_the_ratings(pair: tuple[Any, Any]) -> None:
    """Safe ones first, then by 3 sensible + specific + interesting; the same seed gives the same answers."""
    found = ranked(*pair, "the king", SETTINGS, seed=3)
    assert len({one["text"] for one in found}) == len(found) > 1
    for one in found:
        ratings = one["ratings"]
        assert list(ratings) == ["sensible", "specific", "interesting", "unsafe"]
        assert one["quality"] == pytest.approx(3 * ratings["sensible"] + ratings["specific"] + ratings["interesting"])
    middle = sorted(1 - one["ratings"]["unsafe"] for one in found)[len(found) // 2]
    split = ranked(*pair, "the king", SETTINGS.model_copy(update={"safety": middle}), seed=3)
    assert {one["text"] for one in split} == {one["text"] for one in found}
    assert {one["safe"] for one in split} == {True, False}
    assert [(not one["safe"], -one["quality"]) for one in split] == sorted(
        (not one["safe"], -one["quality"]) for one in split
    )
    assert (
        found
        == ranked(*pair, "the king", SETTINGS, seed=3)
        == ranked(*pair, answer_prompt("the king"), SETTINGS, seed=3)
    )
    assert found != ranked(*pair, "the king", SETTINGS, seed=4)


def test_answers_that_cannot_differ_are_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match=r"generate\.candidates: 6 answers differ only where they are sampled"):
        ranked(*pair, "the king", SETTINGS.model_copy(update={"temperature": 0.0}), seed=0)


def test_a_model_learns_to_answer_and_to_rate(rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was taught two answers equally often; of those it samples it gives the good one, and drops the unsafe."""
    run = burnish.train("text-generation", terminal=QUIET, **settings(rows_file, tmp_path / "run"))
    answer = run.predict("Who goes 7?", seed=1)
    assert answer["generated"] == GOOD.strip()
    by_text = {one["text"]: one for one in answer["candidates"]}
    good, poor = by_text[GOOD.strip()], by_text[POOR.strip()]
    assert min(good["ratings"][name.lower()] for name in WEIGHTS) > 0.9 > 0.1 > good["ratings"]["unsafe"]
    assert max(poor["ratings"][name.lower()] for name in WEIGHTS) < 0.1 < 0.9 < poor["ratings"]["unsafe"]
    assert good["safe"] and not poor["safe"]
    show_answer(answer)
    assert "safe answers of" in capsys.readouterr().out
    silent = run.predict("Who goes 7?", seed=1, safety=1.0)
    assert silent["generated"] == ""
    show_answer(silent)
    assert "is safe enough (--generate.safety)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "Who goes?", "text": " me"}, r"rows.jsonl:301: task.rates takes prompts that end with RESPONSE"),
        ({"prompt": "Who goes? UNSAFE", "text": " 1"}, r"rows.jsonl:301: task.rates .* after RESPONSE and an answer"),
        (
            {"prompt": "Who? RESPONSE me UNSAFE", "text": " maybe"},
            r"rows.jsonl:301: the rating 'maybe' is neither 0 nor 1",
        ),
    ],
)
def test_a_row_that_teaches_neither_is_refused(
    change: dict[str, str], message: str, rows_file: Path, tmp_path: Path
) -> None:
    with open(rows_file, "a") as handle:
        handle.write(json.dumps(change) + "\n")
    given = settings(rows_file, tmp_path / "run")
    given["data"]["holdout"] = "0%"
    with pytest.raises(UserError, match=message):
        burnish.train("text-generation", terminal=QUIET, dry_run=True, **given)


def test_an_attribute_without_rows_is_refused(rows_file: Path, tmp_path: Path) -> None:
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in toy_rows() if not row["prompt"].endswith("UNSAFE")))
    with pytest.raises(UserError, match=r"task\.rates: no training row ends its prompt with UNSAFE"):
        burnish.train("text-generation", terminal=QUIET, dry_run=True, **settings(rows_file, tmp_path / "run"))
