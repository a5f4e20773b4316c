"""The speed benchmark: every side does the same work, and a ratio is shown only then."""

from __future__ import annotations

import ast
import copy
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, speed, speed_page
from benchmarks.page import Measured
from benchmarks.speed import WORKS, Goal, Work
from benchmarks.speed_rows import Data, Reader, chat, prompts, tokenizer
from helpers import ROOT

Results = list[dict[str, Any]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, assets: dict[str, Path]) -> Callable[[Work], Results]:
    """Return what measures a work made small, its sides in this process."""

    def start(work: Work, side: speed.Side, module: str, *arguments: Any) -> dict[str, Any]:
        with redirect_stdout(io.StringIO()) as said:
            import_module(module).main([str(argument) for argument in arguments])
        return json.loads(said.getvalue().splitlines()[-1])

    monkeypatch.setattr(speed, "start", start)
    return lambda work: speed.measure(work.shrunk(), 1, lambda line: None)


def measured(name: str, results: Results) -> Measured:
    """Return results as a run leaves them."""
    return Measured(name, results, 1, 1, False, "2001-02-03", "the command", "c0ffee", 0.5, {"processor": "an abacus"})


@pytest.mark.parametrize("name", ["encoder-frozen", "encoder-head", "causal", "causal-chat", "start", "resume"])
def test_all_sides_do_the_same_work(name: str, here: Callable[[Work], Results]):
    results = here(WORKS[name])
    work = WORKS[name].shrunk()
    assert [result["side"] for result in results] == work.sides
    for goal in work.goals:
        assert [check for check in speed_page.checks(work, results, goal) if not check.passed] == []
    for result in results:
        assert 0 < result["first"]["cpu"] <= result["start"]["cpu"]
        assert 0 < result["memory"]["before"] <= result["memory"]["peak"]
    page = speed_page.section([measured(name, results)])
    assert work.title in page
    assert "none: not equal work" not in page


def test_gpu_works_do_the_same_on_a_processor(here: Callable[[Work], Results]):
    results = here(gpu.WORKS["chat-1b"])
    assert {result["side"] for result in results} == {"burnish", "trainer-bf16"}
    work = gpu.WORKS["chat-1b"].shrunk()
    assert all(check.passed for goal in work.goals for check in speed_page.checks(work, results, goal))
    page = gpu.page_of([measured("chat-1b", results)], "NVIDIA H100 80GB HBM3")
    assert "%" in page.split("model FLOPs utilisation")[1].splitlines()[2]


def test_operations_of_a_token_are_palms():
    # 6 x (12 layers of 12 x 768^2 with biases and norms, and the tied output layer of 50,304) + attention
    wanted = 6 * (12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 50304 * 768) + 12 * 12 * 768 * 1023
    assert gpu.flops_per_token(gpu.WORKS["gpt2"]) == wanted


def test_peers_never_import_burnish():
    files = [
        *(ROOT / "benchmarks" / "peers").glob("*.py"),
        *(ROOT / "benchmarks" / f for f in ("gauge.py", "clock.py")),
    ]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                allowed = ("benchmarks.gauge", "benchmarks.clock", "benchmarks.peers")
                assert not name.startswith("burnish"), f"{file}: {name}"
                assert not name.startswith("benchmarks") or name.startswith(allowed), f"{file}: {name}"


# -- rows ------------------------------------------------------------------------------------------------------------


def test_texts_have_as_many_tokens_as_asked(assets: dict[str, Path]):
    reader = Reader(512)
    for count in (1, 7, 100):
        assert len(tokenizer(512)(reader.next(count))["input_ids"]) == count


def test_rows_are_what_the_table_says(assets: dict[str, Path]):
    def lengths(rows: list[dict[str, str]]) -> list[tuple[int, int]]:
        encode = lambda text: len(tokenizer(512)(text)["input_ids"])  # noqa: E731
        return [(encode(row["prompt"]), encode(row["text"])) for row in rows]

    masked, _ = prompts(Data("prompts", train=4, held_out=1, positions=255, vocabulary=512))
    assert {round(text / (prompt + text), 1) for prompt, text in lengths(masked)} == {0.3}
    ragged, held_out = chat(Data("chat", train=96, held_out=3, positions=511, vocabulary=512))
    sizes = [prompt + text for prompt, text in lengths(ragged)]
    padded = sum(8 * max(sizes[start : start + 8]) for start in range(0, 96, 8))
    assert 0.45 < sum(sizes) / padded < 0.55
    assert len(held_out) == 3


# -- the page --------------------------------------------------------------------------------------------------------


def result(side: str, repeat: int, cpu: float, peak: int = 100, **more: Any) -> dict[str, Any]:
    """Return a made-up result."""
    same = {"steps": 5, "rows": 20, "tokens": 1000, "timed_tokens": 800, "targets": 900, "positions": 2000}
    found = {"losses": [5.0, 4.0, 3.0, 2.0, 1.0], "held_out": 1.5, "precision": "fp32", "arguments": {"bf16": True}}
    times = {name: {"cpu": cpu, "wall": cpu} for name in ("train", "first", "start")}
    versions = {"torch": "1", "transformers": "2"}
    memory = {"before": 50, "peak": peak}
    return {"side": side, "repeat": repeat, **same, **found, **times, "memory": memory, "versions": versions, **more}


@pytest.fixture
def causal() -> Results:
    """Two turns of two sides; Trainer takes 2.5 and 3 times as long."""
    turns = [("burnish", 0, 10.0), ("trainer", 0, 25.0), ("burnish", 1, 12.0), ("trainer", 1, 36.0)]
    return [result(*turn) for turn in turns]


def test_the_ratio_is_best_over_best_with_its_range(causal: Results):
    assert speed_page.ratios(causal, Goal("trainer")) == (2.5, [2.5, 3.0])
    page = speed_page.section([measured("causal", causal)])
    assert "| Trainer, defaults | 2.05 (1.85) | **2.50** (2.50 to 3.00) | 80 / 32 |" in page
    assert speed_page.failures(measured("causal", causal), WORKS["causal"]) == []


def test_rows_of_a_work_stay_until_it_is_measured_again(causal: Results):
    page = speed_page.section([measured("causal", causal)])
    later = replace(measured("causal", causal), name="memory", date="2002-03-04")
    both = speed_page.section([later], page)
    assert both.count("<details>") == 2 and both.count("**2.50** (2.50 to 3.00)") == 1 and "2002-03-04" in both
    assert speed_page.section([measured("causal", causal)], both) == both


def test_memory_is_a_share_of_the_peers():
    results = [result("burnish", 0, 1, peak=50), result("trainer", 0, 1, peak=100)]
    goal = WORKS["memory"].goals[0]
    reached, _ = speed_page.ratios(results, goal)
    assert reached == 0.5
    assert speed_page.verdict(goal, reached) == "goal"
    assert speed_page.verdict(goal, 0.7) == "**NO**"


@pytest.mark.parametrize(("reached", "verdict"), [(2.1, "goal"), (1.9, "floor"), (1.8, "**NO**")])
def test_a_ratio_reaches_goal_or_floor_or_neither(reached: float, verdict: str):
    assert speed_page.verdict(Goal("trainer", 2.05, 1.85), reached) == verdict
    assert speed_page.verdict(Goal("loop"), reached) == ""


def test_a_floor_that_is_missed_is_a_failure(causal: Results):
    for entry in causal:
        if entry["side"] == "trainer":
            entry["train"] = {"cpu": 15.0, "wall": 15.0}
    [problem] = speed_page.failures(measured("causal", causal), WORKS["causal"])
    assert problem == "causal, burnish and trainer: 1.50, the floor is 1.85"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("steps", 6, "steps"),
        ("rows", 21, "rows"),
        ("tokens", 1001, "tokens"),
        ("targets", 901, "targets"),
        ("losses", [5.0, 4.0, 3.0, 2.0, 1.01], "training loss"),
        ("held_out", 1.51, "held-out loss"),
        ("versions", {"torch": "1.1", "transformers": "2"}, "torch"),
    ],
)
def test_no_ratio_for_work_that_was_not_equal(causal: Results, field: str, value: Any, named: str):
    results = copy.deepcopy(causal)
    for entry in results:
        if entry["side"] == "trainer":
            entry[field] = value
    [problem] = speed_page.failures(measured("causal", results), WORKS["causal"])
    assert named in problem
    page = speed_page.section([measured("causal", results)])
    assert "none: not equal work" in page
    assert "**2.50**" not in page
