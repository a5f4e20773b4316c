"""C2 at small size: damaged rows are reported exactly, with file, line and reason; good rows keep their place."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

import pytest

import burnish
from burnish.data.rows import Holdout, Rows, Side, asked_of, find_parts
from burnish.errors import UserError
from burnish.task import BrokenRow, Row
from helpers import sentiment_rows

COLUMNS = {"text": "text", "label": "label"}


def rows_of(path: Path, columns: dict[str, str] = COLUMNS) -> Rows:
    return Rows(find_parts([str(path)], "data.train", lambda name, setting: []), columns)


DAMAGE = {
    "cut": b'{"text": "a line that was cu',
    "invalid utf-8": b'{"text": "\xff\xfe", "label": "x"}',
    "lone surrogate": b'{"text": "\\ud800", "label": "x"}',
    "nul": b'{"text": "a\x00b", "label": "x"}',
    "escaped nul": b'{"text": "a\\u0000b", "label": "x"}',
    "missing field": b'{"text": "no label"}',
    "null": b'{"text": null, "label": "x"}',
    "number": b'{"text": 12, "label": "x"}',
    "list": b'["text", "label"]',
    "empty": b'{"text": "", "label": "x"}',
    "whitespace": b'{"text": " \\n\\t ", "label": "x"}',
    "nan label": b'{"text": "fine", "label": NaN}',
    "deep": b'{"text": ' + b"[" * 100_000,
    "no json": b"text,label",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_damaged_jsonl_is_reported_exactly(tmp_path: Path, packed: bool, newline: bytes) -> None:
    draw = random.Random(3)
    good = [json.dumps({"text": text, "label": label}).encode() for text, label in sentiment_rows(2000)]
    lines = list(good)
    for damaged in DAMAGE.values():
        lines.insert(draw.randrange(len(lines)), damaged)
    data = newline.join(lines) + newline
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    expected = {f"{path}:{number}" for number, line in enumerate(lines, 1) if line in DAMAGE.values()}
    rows = rows_of(path)
    broken = rows.check("data.train", "skip")
    assert {row.where for row in broken} == expected and all(row.reason for row in broken)
    assert [row.values["text"] for row in rows] == [json.loads(line)["text"] for line in good]
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        rows.check("data.train", "stop")


def test_damaged_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'text,label\n"a quoted, text\nover two lines",good\nonly one field\nfine,bad\n,empty\n"open quote,x\n'
    )
    found = list(rows_of(path).read())
    assert [(row.where.split(":")[-1], type(row).__name__) for row in found] == [
        ("2", "Row"), ("4", "BrokenRow"), ("5", "Row"), ("6", "BrokenRow"), ("7", "BrokenRow"),
    ]  # fmt: skip


def test_a_long_line_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as handle:
        handle.write(b'{"text": "one", "label": "x"}\n{"text": "')
        handle.write(b"x" * (17 * 2**20))
        handle.write(b'", "label": "x"}\n{"text": "two", "label": "x"}\n')
    found = list(rows_of(path).read())
    assert [type(row) for row in found] == [Row, BrokenRow, Row]
    assert found[2].where.endswith(":3")


def test_paragraphs_joined_are_the_file(tmp_path: Path) -> None:
    text = "One.\nTwo.\n\n\nThree.\n \nFour.\n"
    (tmp_path / "a.txt").write_text(text)
    rows = list(rows_of(tmp_path / "a.txt", {"text": "text"}))
    assert "".join(row.values["text"] for row in rows) == text
    assert [row.where.split(":")[-1] for row in rows] == ["1", "5", "7"]


def test_every_source_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset, Features, Value

    expected = sentiment_rows(50)
    with open(tmp_path / "a.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *expected])
    with open(tmp_path / "a.tsv", "w", newline="") as handle:
        csv.writer(handle, delimiter="\t").writerows([("text", "label"), *expected])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in expected))
    table = pa.table({"text": [t for t, _ in expected], "label": [label for _, label in expected]})
    pq.write_table(table, tmp_path / "a.parquet")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    Dataset.from_dict(
        {"text": [t for t, _ in expected], "label": [label for _, label in expected]}, features=features
    ).to_parquet(tmp_path / "classes.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "classes.parquet"):
        assert [(row.values["text"], row.values["label"]) for row in rows_of(tmp_path / name)] == expected, name
    assert len(list(rows_of(tmp_path))) == 5 * 50, "a folder is its files"


def _row(text: str, label: str = "x", group: str = "") -> Row:
    return Row({"text": text, "label": label, "author": group}, "here:1")


def test_a_row_never_changes_sides() -> None:
    rows = [_row(text) for text, _ in sentiment_rows(1000)]
    held = {row.values["text"] for row in Side(rows, Holdout(rows, 0.2, None, False), True)}
    assert 150 < len(held) < 250
    fewer = list(reversed(rows[::3]))
    assert {row.values["text"] for row in Side(fewer, Holdout(fewer, 0.2, None, False), True)} == held & {
        row.values["text"] for row in fewer
    }


def test_groups_stay_together_and_strata_are_exact() -> None:
    rows = [_row(f"text {i}", "rare" if i % 10 == 0 else "common", f"author {i % 40}") for i in range(1000)]
    held = list(Side(rows, Holdout(rows, 0.2, "author", False), True))
    kept = list(Side(rows, Holdout(rows, 0.2, "author", False), False))
    assert held and not {row.values["author"] for row in held} & {row.values["author"] for row in kept}
    strata = list(Side(rows, Holdout(rows, 0.2, None, True), True))
    assert sum(row.values["label"] == "rare" for row in strata) == 20 and len(strata) == 200


@pytest.mark.parametrize(("groups", "wanted"), [(2, 1), (5, 1), (10, 2), (40, 8)])
def test_of_few_groups_the_share_is_held_out_and_one_at_least(groups: int, wanted: int) -> None:
    for start in range(20):  # others by their hashes each time
        rows = [_row(f"text {i}", group=f"speaker {start + i % groups}") for i in range(3 * groups)]
        held = {row.values["author"] for row in Side(rows, Holdout(rows, 0.2, "author", False), True)}
        assert len(held) == wanted
    alone = [_row("text", group="one")] * 3
    assert Holdout(alone, 0.2, "author", False).share == 0.2


def test_broken_rows_are_kept_with_the_run(tmp_path: Path) -> None:
    import burnish
    from burnish.terminal import Terminal

    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text}) for text, _ in sentiment_rows(200)]
    lines.insert(17, "{oops")
    path.write_text("\n".join(lines))
    run = burnish.train(
        "text-generation",
        terminal=Terminal(quiet=True),
        model={"preset": "gpt2-nano", "vocab_size": 300},
        data=str(path),
        train={"length": "2 steps", "sequence": 16},
        generate={"max_tokens": 2},
        run={"dir": str(tmp_path / "run")},
    )
    [reject] = [json.loads(line) for line in run.folder.rejects.read_text().splitlines()]
    assert reject["where"] == f"{path}:18" and "not valid JSON" in reject["reason"]


def test_an_input_is_a_text_an_object_or_a_file(tmp_path: Path) -> None:
    """A long text is no name of a file, an object of the columns no text, and a file that is missing no text either."""
    columns = {"messages": "talk"}
    long = "word " * 200
    assert asked_of(long, columns) == [{"messages": long}]
    turns = [{"role": "user", "content": "Who?"}]
    for name in ("messages", "talk"):
        assert asked_of(json.dumps({name: turns}), columns) == [{"messages": turns}]
    for text in ('{"other": 3}', "{oops", "[1]", "3"):
        assert asked_of(text, columns) == [{"messages": text}]
    with pytest.raises(UserError, match=r"more\.csv: no such file"):
        asked_of(str(tmp_path / "more.csv"), {"text": "text"})
    with pytest.raises(UserError, match=r"is a folder; give a text, or a file of rows \(.*\.csv, .*\.txt\)\."):
        asked_of(str(tmp_path), columns)


def test_who_gives_conversations_as_texts_is_told_how(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hi."}]}\n')
    with pytest.raises(UserError, match=r"chats\.jsonl:1: has no column 'text' .*--data\.messages messages"):
        burnish.train("text-generation", preset="gpt2-nano", data=str(file), run={"dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
