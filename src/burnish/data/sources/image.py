"""Image files: a row is an image, with what its folder says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burnish.data.pictures import Picture
from burnish.data.rows import Source
from burnish.task import BrokenRow, Row


class ImageSource(Source):
    """PNG, JPEG and WebP files; the label of an image is the name of its folder.

    Source: the layout `imagefolder` of `datasets`.
    """

    name = "image"
    endings = (".png", ".jpg", ".jpeg", ".webp")
    reads = frozenset({"images"})

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        yield Row({"image": Picture(str(path), path), "label": path.resolve().parent.name}, str(path))
