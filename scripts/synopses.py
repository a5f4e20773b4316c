"""From a package index to texts and their summaries: the description of a package, and the line that its maintainer made of it.

Packages of one source say much the same, and so do packages with one upstream. So a source counts once, a paragraph that
several sources have is left out, and no eight words of a test text stand in a training text.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

#: Words of a text; shorter ones are hardly longer than their line, and longer ones cost most.
SHORTEST, LONGEST = 30, 200
TESTS = 300
RUN = 8


class Described(NamedTuple):
    """What an index says of a package; of those of one source, the least is the one that stands for it."""

    is_part: bool
    """Whether the source has another name."""
    length: int
    """Of the name, by characters."""
    name: str
    line: str
    text: str


def pairs_of(descriptions: str, packages: str, tests: int = TESTS) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return rows to train and to test with: a text and its line, as text and target.

    Args:
        descriptions: the index's file of descriptions in English.
        packages: its file of packages, which says of what source each is.
        tests: how many rows are to test with, drawn by the names of their sources.
    """
    rows = sorted(_rows(_by_source(descriptions, packages)), key=lambda row: _hash(row[0]))
    test, rest = rows[:tests], rows[tests:]
    known = set().union(*(_runs(text) for _, text, _ in test))
    train = [row for row in rest if not known & _runs(row[1])]
    train, test = ([{"text": text, "target": line} for _, text, line in side] for side in (train, test))
    return train, test


def _by_source(descriptions: str, packages: str) -> dict[str, list[Described]]:
    source_of = {part["Package"]: part.get("Source", part["Package"]).split()[0] for part in _stanzas(packages)}
    found = defaultdict(list)
    for part in _stanzas(descriptions):
        name = part["Package"]
        source = source_of.get(name, name)
        line, _, text = part.get("Description-en", "").partition("\n")
        found[source].append(Described(name != source, len(name), name, line, text))
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of each package; of a value of several lines all but the first are indented by one."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        for name, value in re.findall(r"^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", block, re.M):
            fields[name] = re.sub(r"\n[ \t]", "\n", value)
        if "Package" in fields:
            yield fields


def _rows(sources: dict[str, list[Described]]) -> Iterator[tuple[str, str, str]]:
    """Yield source, text and line, where the line says what the package is, not what part of it, and no other has it."""
    having, lines = defaultdict(set), set()
    for source, parts in sources.items():
        for part in parts:
            for paragraph in _paragraphs(part.text):
                having[_letters(paragraph)].add(source)
    for source in sorted(sources):
        part = min(sources[source])
        own = [paragraph for paragraph in _paragraphs(part.text) if len(having[_letters(paragraph)]) == 1]
        text, line = " ".join(own), part.line.strip().rstrip(".")
        whole = len(line.split()) >= 3 and " - " not in line and not line.endswith(")")
        if whole and SHORTEST <= len(text.split()) <= LONGEST and _letters(line) not in lines:
            lines.add(_letters(line))
            yield source, text, line


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a description; a line with a dot alone parts them."""
    return [joined for part in re.split(r"(?m)^\.$", text) if (joined := " ".join(part.split()))]


def _letters(text: str) -> str:
    """Return what is left of a text for comparison: its letters, so that versions count as one."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
