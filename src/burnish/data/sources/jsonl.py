"""JSON lines: a row is an object on a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from burnish.data.files import open_lines
from burnish.data.rows import Source
from burnish.task import BrokenRow, Row


class JsonLinesSource(Source):
    """One JSON object per line; blank lines are passed over."""

    name = "jsonl"
    endings = (".jsonl", ".ndjson")

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        for number, line in open_lines(path):
            where = f"{path}:{number}"
            if isinstance(line, BrokenRow):
                yield line
            elif line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield BrokenRow(where, f"is not valid JSON ({str(error)[:100]})")
                    continue
                if isinstance(value, dict):
                    yield Row(value, where)
                else:
                    yield BrokenRow(where, f"is a JSON {type(value).__name__}, not an object with columns")
