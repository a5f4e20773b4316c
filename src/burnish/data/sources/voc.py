"""VOC's XML files: each says which objects one image shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burnish.data.annotations import voc_row
from burnish.data.rows import Source
from burnish.task import BrokenRow, Row


class VocSource(Source):
    """An XML file for each image, which lies beside it or in `../JPEGImages`."""

    name = "voc"
    endings = (".xml",)
    reads = frozenset({"images"})

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        yield voc_row(path)
