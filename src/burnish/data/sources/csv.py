"""CSV and TSV with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from burnish.data.files import open_lines
from burnish.data.rows import Source
from burnish.errors import UserError
from burnish.task import BrokenRow, Row


class CsvSource(Source):
    """Comma or tab separated values; the first line names the columns. Fields may be quoted and span lines."""

    name = "csv"
    endings = (".csv", ".tsv")

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        broken: list[BrokenRow] = []
        delimiter = "\t" if ".tsv" in path.name.lower() else ","
        csv.field_size_limit(2**24)
        reader = csv.reader(_good_lines(path, broken), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                broken.append(BrokenRow(f"{path}:{line}", f"is not valid CSV ({error})"))
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if twice := {name for name in header if header.count(name) > 1}:
                    raise UserError(f"{path}:{line}: the column {min(twice)!r} stands twice in the header; rename one.")
            elif len(fields) == len(header):
                yield Row(dict(zip(header, fields, strict=True)), f"{path}:{line}")
            elif fields:
                broken.append(BrokenRow(f"{path}:{line}", f"has {len(fields)} fields, the header has {len(header)}"))
            yield from broken
            broken.clear()
        yield from broken


def _good_lines(path: Path, broken: list[BrokenRow]) -> Iterator[str]:
    for _, line in open_lines(path):
        if isinstance(line, BrokenRow):
            broken.append(line)
            yield "\n"  # keeps the count of lines; the reader passes over it
        else:
            yield line
