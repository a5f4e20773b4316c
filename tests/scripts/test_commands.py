"""Commands drawn from templates: what a template says, which words a slot has, and that the sides have nothing in common."""

from __future__ import annotations

import doctest
import random
import sys
from collections import Counter
from typing import Any

import pytest

from burnish.tasks.token_classification import entities
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import commands as made

RULES = {"the": "(the|my)", "dim": "(dim [down]|lower)"}
WAYS = ("now", "soon", "later", "please", "just")
GRAMMAR = {
    "expansion_rules": RULES,
    "lists": {
        "level": {"range": {"from": 0, "to": 100}},
        "hours": {"range": {"from": 1, "to": 100}},
        "kelvin": {"range": {"from": 1000, "to": 5000, "step": 100}},
        "color": {"values": [{"in": "red[dish]"}, {"in": "(green|lime)"}]},
    },
    "intents": {
        "Dim": {
            "data": [
                {
                    "sentences": [f"<dim> {way} [<the>] {{name}} [light] {{level}}( |-)percent" for way in WAYS],
                    "requires_context": {"domain": ["light", "input_button"]},
                }
            ]
        },
        "Paint": {"data": [{"sentences": ["(paint|colour) [<the>] {area} (in|with) [a] [nice] {color:paint} [now]"]}]},
        "Wait": {"data": [{"sentences": ["wait", "(hold on;[<the>] {hours}[ ](h|hours|o'clock) [more])"]}]},
    },
}


def said(template: str) -> set[str]:
    draw = random.Random(0)
    return {made.expanded(template, RULES, draw) for _ in range(400)}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict[str, Any]]]:
    return made.commands(GRAMMAR)


def test_a_template_says_what_its_grammar_allows() -> None:
    assert said("a (b|c) [d|e]") == {f"a {x}{y}" for x in "bc" for y in ("", " d", " e")}
    assert said("<dim> [<the>] lamp[s]") == {
        f"{verb}{article} {noun}"
        for verb in ("dim", "dim down", "lower")
        for article in ("", " the", " my")
        for noun in ("lamp", "lamps")
    }
    assert said("(off;[the] fan) {name}") == {
        f"{x} {{name}}" for x in ("off fan", "off the fan", "fan off", "the fan off")
    }
    assert said("{hours:start}( |-)hour[s]") == {f"{{hours:start}}{x}" for x in (" hour", "-hour", " hours", "-hours")}


def test_words_belong_to_the_slot_that_has_a_character_of_them() -> None:
    values = {"name": ["egg timer"], "number": ["(five|five)"]}
    text, slots = made.filled("a {number:minutes}-minute {name}, {number}%", values, random.Random(0))
    assert text == "a five-minute egg timer, five%"
    assert made.tagged(text, slots) == {
        "tokens": ["a", "five-minute", "egg", "timer,", "five%"],
        "tags": ["O", "B-minutes", "B-name", "I-name", "B-number"],
    }


def test_numbers_are_said_in_words() -> None:
    words = [made.spelled(number) for number in range(101)]
    assert len(set(words)) == 101 and [words[n] for n in (0, 13, 20, 21)] == [
        "zero",
        "thirteen",
        "twenty",
        "twenty one",
    ]


def test_commands_are_what_their_tags_say(drawn: dict[str, list[dict[str, Any]]]) -> None:
    kinds = {"Dim": {"name", "level"}, "Paint": {"area", "paint"}, "Wait": {"hours"}}
    for row in (row for rows in drawn.values() for row in rows):
        assert row["text"].split() == row["tokens"] and len(row["tokens"]) == len(row["tags"])
        found = entities(row["tags"])
        assert {kind for kind, _, _ in found} == (set() if row["text"] == "wait" else kinds[row["intent"]])
        for kind, start, end in found:
            text = " ".join(row["tokens"][start:end])
            assert kind != "name" or text in made.VALUES["light"]
            assert kind != "paint" or text in ("red", "reddish", "green", "lime")


def test_sides_share_nothing_but_short_lists(drawn: dict[str, list[dict[str, Any]]]) -> None:
    seen: dict[tuple[str, str], str] = {}
    ways: dict[str, str] = {}
    for side, rows in drawn.items():
        for row in rows:
            pattern = row["text"]
            for kind, start, end in entities(row["tags"]):
                value = " ".join(row["tokens"][start:end])
                pattern = pattern.replace(value, f"{{{kind}}}")
                if kind in ("name", "area"):
                    assert seen.setdefault((kind, value), side) == side
            if row["intent"] == "Paint":
                assert ways.setdefault(pattern, side) == side
    timing = {
        side: {row["tokens"][1] for row in rows if row["intent"] == "Dim"} - {"down"} for side, rows in drawn.items()
    }
    assert {side: len(found) for side, found in timing.items()} == {"train": 3, "validation": 1, "test": 1}
    assert len(set().union(*timing.values())) == 5
    texts = Counter(row["text"] for rows in drawn.values() for row in rows)
    assert max(texts.values()) == 1


def test_a_number_is_on_one_side_in_every_list() -> None:
    lists = {name: {"range": {"from": first, "to": 100}} for name, first in (("level", 0), ("hours", 1))}
    values = made._values(lists)
    for one, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        assert not set(values[one]["level"]) & set(values[other]["hours"])
    assert sum(len(side["level"]) for side in values.values()) == 101


def test_each_side_has_each_intent(drawn: dict[str, list[dict[str, Any]]]) -> None:
    counts = {side: Counter(row["intent"] for row in rows) for side, rows in drawn.items()}
    assert counts["train"]["Dim"] == 110 and counts["test"]["Dim"] == 27
    assert all(counts[side][intent] for side in counts for intent in ("Dim", "Paint", "Wait"))


def test_commands_are_drawn_alike_again(drawn: dict[str, list[dict[str, Any]]]) -> None:
    assert made.commands(GRAMMAR) == drawn


def test_no_value_is_in_two_lists() -> None:
    """Else the same word would be of one side as a room and of another as a timer."""
    counts = Counter(value for values in made.VALUES.values() for value in values)
    assert [value for value, count in counts.items() if count > 1] == []


def test_examples_are_true() -> None:
    assert doctest.testmod(made).failed == 0
