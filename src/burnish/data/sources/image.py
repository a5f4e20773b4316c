"""Image files: a row is an image, with what its folder says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from burnish.data.annotations import yolo_file, yolo_objects
from burnish.data.masks import mask_file
from burnish.data.pictures import Picture
from burnish.data.rows import Source
from burnish.task import BrokenRow, Row


class ImageSource(Source):
    """PNG, JPEG and WebP files; the label of an image is the name of its folder, its objects those in YOLO's text files,
    its mask the picture of the same name in a folder of masks.

    Source: the layout `imagefolder` of `datasets`.
    """

    name = "image"
    endings = (".png", ".jpg", ".jpeg", ".webp")
    reads = frozenset({"images"})
    names_files = True

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        values = {"image": Picture(str(path), path), "label": path.resolve().parent.name}
        if mask := mask_file(path):
            values["mask"] = Picture(str(mask), mask)
        file = yolo_file(path)
        objects = yolo_objects(file) if file else None
        if isinstance(objects, str):
            yield BrokenRow(str(path), objects)
            return
        yield Row(values if objects is None else values | {"objects": objects}, str(path))

    def files(self, path: Path) -> list[Path]:
        return [path, *(file for file in (yolo_file(path), mask_file(path)) if file and file.is_file())]
