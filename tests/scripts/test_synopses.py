"""Texts and lines made of a package index: one row a source, nothing that several sources say, and no overlap of the sides."""

from __future__ import annotations

import random
import sys
from textwrap import indent

import pytest

from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import assets
import synopses

WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "ne", "pu", "ra") for second in ("ba", "do", "fi", "gu", "so")
]


def prose(seed: int, words: int = 40) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def described(name: str, line: str, *paragraphs: str) -> str:
    text = "\n.\n".join(paragraph.replace(" ", "\n") for paragraph in paragraphs)
    return f"Package: {name}\nDescription-md5: 0\nDescription-en: {line}\n{indent(text, ' ')}\n\n"


def rows_of(descriptions: str, packages: str = "") -> list[dict[str, str]]:
    return synopses.pairs_of(descriptions, packages, 0)[0]


def test_a_description_becomes_one_text() -> None:
    first, second = "Reads files: " + prose(0), prose(1)
    found = rows_of(described("reader", "reader of many files.", first, second))
    assert found == [{"text": f"{first} {second}", "target": "reader of many files"}]


def test_a_source_counts_once_by_the_package_of_its_name() -> None:
    parts = [
        described(name, f"{name} for all things", prose(place)) for place, name in enumerate(["a-bin", "zeta", "zed"])
    ]
    packages = "Package: a-bin\nSource: zeta (1.0)\n\nPackage: zeta\n\nPackage: zed\nSource: zeta\n\n"
    assert [row["target"] for row in rows_of("".join(parts), packages)] == ["zeta for all things"]
    assert len(rows_of("".join(parts))) == 3


def test_what_several_sources_say_is_left_out() -> None:
    shared = "This is version 12. " + prose(0)
    one = described("one", "the first of all", prose(1), shared)
    two = described("two", "the second of all", prose(2), shared.replace("12", "13"))
    three = described("three", "the third of all", shared)
    assert sorted(row["text"] for row in rows_of(one + two + three)) == sorted([prose(1), prose(2)])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("parser for files - documentation", 40),
        ("parser for files (tools)", 40),
        ("a parser", 40),
        ("parser for files", 29),
        ("parser for files", 201),
    ],
)
def test_lines_of_parts_and_texts_of_other_lengths_are_left_out(line: str, words: int) -> None:
    assert rows_of(described("parser", line, prose(0, words))) == []


def test_a_line_is_the_target_of_one_row() -> None:
    parts = [
        described(f"p{place}", line, prose(place)) for place, line in enumerate(["Parser 1 for it.", "parser 2 for it"])
    ]
    assert len(rows_of("".join(parts))) == 1


def test_no_run_of_words_is_on_both_sides() -> None:
    shared = prose(1_000, 9)
    letters = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    parts = [
        described(name, f"{name} does all of it", f"{prose(place)} {shared if place % 3 else name} {name}")
        for place, name in enumerate(letters)
    ]
    train, test = synopses.pairs_of("".join(parts), "")
    assert (train, len(test)) == ([], 100)
    train, test = synopses.pairs_of("".join(parts), "", 10)
    assert (train, test) == synopses.pairs_of("".join(reversed(parts)), "", 10)
    assert len(test) == 10 and any(shared in row["text"] for row in test)
    assert train and not any(shared in row["text"] for row in train)


def test_the_release_is_found_among_its_updates() -> None:
    updates = "Translations|trixie-updates|13-updates|/u\nPackages|trixie-updates|13-updates|/v\n"
    own = "Packages|trixie|13.2|/p\nTranslations|trixie|13.2|/t\nIcons|trixie|13.2|/i\n"
    assert assets.release_of(updates + own) == {"release": "13.2", "descriptions": "/t", "packages": "/p"}
    with pytest.raises(SystemExit, match="no release of Debian"):
        assets.release_of(updates)


def test_a_machine_without_the_client_is_told_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="Debian's package client, which this machine has not"):
        assets.PACKAGES["debian"].fetch(tmp_path)
