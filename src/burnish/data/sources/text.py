"""Plain text: a row is a paragraph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from burnish.data.files import open_lines
from burnish.data.rows import Source
from burnish.task import BrokenRow, Row

_BLANK = re.compile(r"\s*")


class TextSource(Source):
    """Paragraphs, separated by blank lines. A row keeps its line ends and the blank lines after it, so that the rows of a
    file, joined, are the file."""

    name = "text"
    endings = (".txt", ".md")
    reads = frozenset({"text"})

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        paragraph: list[str] = []
        start, blank = 1, False
        for number, line in open_lines(path):
            if isinstance(line, BrokenRow):
                yield line
                continue
            is_blank = _BLANK.fullmatch(line) is not None
            if blank and not is_blank and paragraph:
                yield Row({"text": "".join(paragraph)}, f"{path}:{start}", document=str(path))
                paragraph = []
            if not paragraph:
                if is_blank:
                    continue
                start = number
            paragraph.append(line)
            blank = is_blank
        if paragraph:
            yield Row({"text": "".join(paragraph)}, f"{path}:{start}", document=str(path))
