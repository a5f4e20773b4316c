"""Commands to a home with their slots, drawn from the sentence templates of home-assistant-intents.

    python scripts/assets.py home-commands

A template such as `turn on [<the>] {name} <in> [<the>] {area}` is expanded at random, and its slots are filled from
`commands.yaml`. The sides, `train`, `validation` and `test`, share no template, no way of expanding one, and no value but those
of the package's own short lists, such as colours. Of an intent with few templates each way of expanding them counts as one.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Item = TypeVar("Item")
#: Of templates and values, one in so many is the test's, and one is for validation.
_PARTS = 5
#: Draws that find most ways of expanding a few templates.
_DRAWS = 2_000
#: A command that was drawn before is drawn again, so many times for each that is wanted.
_PATIENCE = 20
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")

#: Values of the open lists.
VALUES = {
    name: values.split(", ")
    for name, values in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def commands(grammar: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the commands of each side, intent by intent: `text`, `intent`, and `tokens` with their `tags`.

    Args:
        grammar: the templates of a language, as home-assistant-intents has them.
    """
    rules, values = grammar["expansion_rules"], _values(grammar["lists"])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in values}
    sides: dict[str, str] = {}
    seen: set[str] = set()
    for intent, told in grammar["intents"].items():
        draw = random.Random(intent)
        named = _templates(told["data"])
        wanted = 100 + 2 * len(named)
        if len(named) < _PARTS:
            drawn = (draw.choice(list(named)) for _ in range(_DRAWS))
            named = {expanded(template, rules, draw): named[template] for template in drawn}
        for side, templates in apart(named).items():
            rows = []
            for _ in range(_PATIENCE * wanted if templates else 0):
                template = draw.choice(templates)
                pattern = expanded(template, rules, draw)
                names = [name for kind in named[template] for name in values[side].get(kind, ())]
                text, slots = filled(pattern, values[side] | {"name": names}, draw)
                if text not in seen and sides.setdefault(pattern, side) == side:
                    seen.add(text)
                    rows.append({"text": text, "intent": intent, **tagged(text, slots)})
                if len(rows) == (wanted if side == "train" else wanted // 4):
                    break
            found[side] += rows
    return found


def apart(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Return the items of each side: the test and validation have a fifth each, chosen by hashes.

    >>> {side: len(items) for side, items in apart(range(12)).items()}
    {'train': 8, 'validation': 2, 'test': 2}
    """
    ordered = sorted(items, key=lambda item: hashlib.sha256(str(item).encode()).digest())
    part = len(ordered) // _PARTS
    return {"train": ordered[2 * part :], "validation": ordered[part : 2 * part], "test": ordered[:part]}


def expanded(template: str, rules: Mapping[str, str], draw: random.Random) -> str:
    """Return one way of saying a template, with its slots still open.

    `(a|b)` is one of them, `[a]` is a or nothing, `(a;b)` is both in any order, `<a>` is what the rule says.

    >>> expanded("<turn> [on] {name}", {"turn": "(turn|switch)"}, random.Random(0))
    'switch {name}'
    """
    text = f"({template})"
    while rule := re.search(r"<(\w+)>", text):
        text = text.replace(rule[0], f"({rules[rule[1]]})")
    while group := re.search(r"([(\[])([^()\[\]]*)[)\]]", text):
        if ";" in group[2]:
            parts = group[2].split(";")
            said = f" {' '.join(draw.sample(parts, len(parts)))} "
        else:
            said = draw.choice(group[2].split("|"))
        if group[1] == "[" and draw.random() < 0.5:
            said = ""
        text = text[: group.start()] + said + text[group.end() :]
    return " ".join(text.split())


def filled(
    pattern: str, values: Mapping[str, Sequence[str]], draw: random.Random
) -> tuple[str, list[tuple[str, int, int]]]:
    """Return a pattern with a value in each slot, and of each slot its name and the characters of its value.

    >>> filled("at {timer_hours:hours} sharp", {"timer_hours": ["(ten)"]}, random.Random(0))
    ('at ten sharp', [('hours', 3, 6)])
    """
    text, slots, place = "", [], 0
    for slot in _SLOT.finditer(pattern):
        text += pattern[place : slot.start()]
        value = expanded(draw.choice(values[slot[1]]), {}, draw)
        slots.append((slot[2] or slot[1], len(text), len(text) + len(value)))
        text += value
        place = slot.end()
    return text + pattern[place:], slots


def tagged(text: str, slots: Sequence[tuple[str, int, int]]) -> dict[str, list[str]]:
    """Return the words of a text and the tag of each: a word belongs to a slot if one of its characters does.

    >>> tagged("a 5-minute egg timer", [("minutes", 2, 3), ("name", 11, 14)])
    {'tokens': ['a', '5-minute', 'egg', 'timer'], 'tags': ['O', 'B-minutes', 'B-name', 'O']}
    """
    words = list(re.finditer(r"\S+", text))
    tags = ["O"] * len(words)
    for slot, start, end in slots:
        inside = [place for place, word in enumerate(words) if word.start() < end and start < word.end()]
        for place in inside:
            tags[place] = f"{'B' if place == inside[0] else 'I'}-{slot}"
    return {"tokens": [word[0] for word in words], "tags": tags}


def spelled(number: int) -> str:
    """Return a number up to 100 in words.

    >>> spelled(42), spelled(100)
    ('forty two', 'one hundred')
    """
    if number < len(_ONES):
        return _ONES[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return f"{_TENS[tens - 2]} {_ONES[ones]}" if ones else _TENS[tens - 2]


def _templates(blocks: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return an intent's templates, each with the kinds of device that its `{name}` may be."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        for template in block["sentences"]:
            found.setdefault(template, []).extend(block.get("requires_context", {}).get("domain", []))
    return found


def _values(lists: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return the values of each list on each side, as templates; a number is on the same side in all lists."""
    short = {name: [value["in"] for value in told["values"]] for name, told in lists.items() if "values" in told}
    ranges = {name: told["range"] for name, told in lists.items() if "range" in told}
    numbers = {name: range(told["from"], told["to"] + 1, told.get("step", 1)) for name, told in ranges.items()}
    names = {name: apart(values) for name, values in VALUES.items()}
    found = {}
    for side, some in apart(set().union(*numbers.values())).items():
        said = {number: f"({number}|{spelled(number)})" if number <= 100 else str(number) for number in some}
        counted = {name: [said[number] for number in some if number in numbers[name]] for name in numbers}
        found[side] = short | counted | {name: sides[side] for name, sides in names.items()}
    return found
