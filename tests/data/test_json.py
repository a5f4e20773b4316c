"""JSON files: lists of objects, SQuAD's layout, what is no such file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from burnish.data.rows import find_parts
from burnish.data.sources.json import JsonSource
from burnish.errors import UserError
from burnish.task import BrokenRow, Row
from helpers import squad

ROWS = [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]


def test_lists_of_objects(tmp_path: Path) -> None:
    for name, value in (("plain", ROWS), ("under", {"data": ROWS})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        assert list(JsonSource().read(path)) == [Row(row, f"{path}:{n}") for n, row in enumerate(ROWS, 1)]
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    assert [row.values for row in JsonSource().read(packed) if isinstance(row, Row)] == ROWS


def test_questions_of_squad_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    nested = squad(5)
    nested["data"][4]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "plausible", "answer_start": 0}]
    path.write_text(json.dumps(nested))
    rows = [row for row in JsonSource().read(path) if isinstance(row, Row)]
    assert [row.where for row in rows] == [f"{path}:q{n}" for n in range(5)]
    first = nested["data"][0]["paragraphs"][0]
    assert rows[0].values == {"context": first["context"], **first["qas"][0], "title": "Article 0"}
    assert rows[4].values["answers"] == [], "the plausible answer to a question that has none"


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROWS[0], "two", {"paragraphs": [{"qas": [{"id": 1}]}]}]))
    good, text, nested = JsonSource().read(path)
    assert isinstance(good, Row)
    assert text == BrokenRow(f"{path}:2", "is a JSON str, not an object with columns")
    assert isinstance(nested, BrokenRow) and "is not laid out as SQuAD" in nested.reason
    for content, message in (
        ('{"text": "one"}\n{"text": "two"}\n', "is not valid JSON .* on each line ends in .jsonl"),
        ("3", "holds neither a list of objects nor one under 'data'"),
        ('{"rows": []}', "holds neither a list of objects nor one under 'data'"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            list(JsonSource().read(path))


def test_beside_other_data_a_json_describes_it(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert [part.path.name for part in find_parts([str(tmp_path)], "data.train", lambda *_: [])] == ["state.json"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    assert [part.path.name for part in find_parts([str(tmp_path)], "data.train", lambda *_: [])] == ["rows.jsonl"]
