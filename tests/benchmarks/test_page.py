"""The page of the benchmarks: medians, ratios and checks, all of them from the results it is given."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.children import ChildFailed, run_child
from benchmarks.page import Measured, failures, ratios, render, spread
from benchmarks.rows import read_split
from benchmarks.run import QUICK_ROWS, shrunk


def result(side: str, seed: int, cpu: float, **more: Any) -> dict[str, Any]:
    """Return a made-up result."""
    rows = {"train": "aaaa", "held_out": "bbbb"}
    times = {"train": {"cpu": cpu, "wall": cpu}, "whole": {"cpu": cpu + 1}}
    return {"side": side, "seed": seed, "rows": rows, "parameters": 123_456, "precision": "fp32", **times, **more}


def classified(side: str, seed: int, cpu: float, **more: Any) -> dict[str, Any]:
    """Return a made-up result of classification."""
    same = {"trainable": 99, "steps": 10, "rows_learned": 300, "epochs": 2}
    return result(
        side,
        seed,
        cpu,
        **{
            **same,
            "mean_train_loss": 0.5,
            "loss": 0.25,
            "accuracy": 0.875,
            "macro_f1": 0.8,
            "calibration_error": 0.1,
            **more,
        },
    )


def generated(side: str, seed: int, cpu: float, bits: float) -> dict[str, Any]:
    """Return a made-up result of text generation."""
    return result(side, seed, cpu, bits_per_byte=bits, steps=7, held_out_bytes=1000, unknown_characters=2)


def measured(name: str, results: list[dict[str, Any]]) -> Measured:
    """Return results as a run leaves them."""
    return Measured(name, results, 1, 2, False, "2001-02-03", "the command", "c0ffee", 0.5, {"processor": "an abacus"})


@pytest.fixture
def sentiment() -> Measured:
    """Two seeds of two sides; Trainer takes 2 and 3 times as long."""
    base = {
        "train_rows": 150,
        "held_out_rows": 50,
        "majority": 0.625,
        "majority_label": "x",
        "tfidf": 0.75,
        "tfidf_macro_f1": 0.5,
    }
    turns = [("burnish", 0, 10), ("trainer", 0, 20), ("burnish", 1, 10), ("trainer", 1, 30)]
    results = [classified(side, seed, cpu) for side, seed, cpu in turns]
    return measured("sentiment", [result("baselines", 0, 1, **base), *results])


@pytest.fixture
def shakespeare() -> Measured:
    """One seed of every side."""
    sides = [("5-gram", 1, 2.5), ("burnish", 50, 1.5), ("nanogpt", 10, 3.0), ("nanogpt-same-time", 51, 2.0)]
    return measured("shakespeare", [generated(side, 0, cpu, bits) for side, cpu, bits in sides])


def test_spread_is_median_and_range():
    assert spread([1.0, 9.0, 2.0], 1) == "2.0 (1.0 to 9.0)"
    assert spread([1.234], 2) == "1.23"


def test_ratios_are_taken_seed_by_seed(sentiment: Measured):
    found = ratios(sentiment.results, "trainer", "burnish", lambda result: result["train"]["cpu"])
    assert found == [2, 3]


def test_the_page_says_what_was_measured(sentiment: Measured, shakespeare: Measured):
    page = render([sentiment, shakespeare])
    for expected in ("an abacus", "2.50 (2.00 to 3.00)", "0.8750", "0.6250", "1000", "2001-02-03", "`the command`"):
        assert expected in page
    assert page.index("nanoGPT's CPU recipe, at its published length | 123") < page.index("| burnish, the recipe | 123")
    assert failures([sentiment, shakespeare]) == []


def test_the_page_says_what_was_not_measured(sentiment: Measured):
    page = render([sentiment])
    assert "## Text generation: Shakespeare\n\nNot measured on this machine" in page
    assert "on a GPU | not measured" in page


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rows", {"train": "other", "held_out": "bbbb"}, "training rows"),
        ("rows_learned", 299, "rows learned"),
        ("steps", 13, "steps"),
        ("trainable", 98, "parameters that train"),
        ("mean_train_loss", 0.62, "training loss"),
        ("loss", 0.19, "held-out loss"),
        ("same_decay", False, "weight decay"),
    ],
)
def test_work_that_was_not_equal_is_found(sentiment: Measured, field: str, value: Any, named: str):
    results = copy.deepcopy(sentiment.results)
    for entry in results:
        if entry["side"] == "trainer":
            entry[field] = value
    [problem] = failures([measured("sentiment", results)])
    assert named in problem
    assert "**NO**" in render([measured("sentiment", results)])


def test_time_that_was_not_equal_is_found(shakespeare: Measured):
    shakespeare.results[-1]["train"] = {"cpu": 56, "wall": 56}
    [problem] = failures([shakespeare])
    assert "processor time" in problem


def test_a_section_stays_until_it_is_measured_again_on_the_same_machine(sentiment: Measured, shakespeare: Measured):
    both = render([sentiment, shakespeare])
    later = replace(shakespeare, date="2002-03-04")
    page = render([later], both)
    assert page == both.replace("2001-02-03", "2002-03-04", 1)
    assert render([later], page) == page
    other = render([replace(later, environment={"processor": "another"})], both)
    assert "## Classification: sentiment with a pretrained encoder\n\nNot measured on this machine" in other


def test_a_shrunk_recipe_holds_the_first_rows(tmp_path: Path, text_file: Path, reviews_file: Path):
    for task, data in (("text-generation", text_file), ("text-classification", reviews_file)):
        recipe = tmp_path / f"{task}.yaml"
        recipe.write_text(yaml.safe_dump({"task": task, "model": "m", "data": str(data), "train": {"batch": 8}}))
        folder = tmp_path / task
        folder.mkdir()
        small = read_split(shrunk(recipe, folder, {"train": {"length": "2 steps"}}))
        whole = read_split(recipe)
        kept = [row.values["text"].strip() for row in small.train]
        assert kept == [row.values["text"].strip() for row in whole.train][:QUICK_ROWS]
        assert len(small.held_out) > 0
        assert (small.config.train.length, small.config.train.batch) == ("2 steps", 8)


def test_a_child_that_fails_says_why():
    with pytest.raises(ChildFailed, match="no-such-recipe"):
        run_child("benchmarks.tfidf", "--recipe", "no-such-recipe.yaml", threads=1)
