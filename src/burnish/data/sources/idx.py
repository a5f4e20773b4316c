"""IDX files, in which MNIST and Fashion-MNIST are kept."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from burnish.data.pictures import Picture
from burnish.data.rows import Source
from burnish.errors import UserError
from burnish.task import BrokenRow, Row

_IMAGES, _LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
#: More than any data set in this format has: the largest has 814,255 images of 784 bytes.
_MOST_BYTES = 2**31


class IdxSource(Source):
    """Images in one file and their labels in another, `NAME-images-idx3-ubyte` and `NAME-labels-idx1-ubyte`.

    A file `labels.txt` beside them gives the labels their names, one on a line.
    Source: the file format at the end of LeCun, Cortes and Burges' page of MNIST.
    """

    name = "idx"
    endings = (_IMAGES,)
    reads = frozenset({"images"})

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        labels = path.with_name(path.name.replace(_IMAGES, _LABELS))
        if not labels.is_file():
            raise UserError(f"{path}: its labels are missing; {labels} does not exist.")
        images, numbers = _array(path, 3), _array(labels, 1)
        if len(images) != len(numbers):
            raise UserError(f"{path}: holds {len(images):,} images, and {labels} {len(numbers):,} labels.")
        names = path.with_name("labels.txt")
        named = names.read_text(encoding="utf-8").split("\n") if names.is_file() else []
        for number, (pixels, label) in enumerate(zip(images, numbers.tolist(), strict=True), 1):
            where = f"{path}:{number}"
            text = named[label].strip() if label < len(named) else str(label)
            yield Row({"image": Picture(where, pixels), "label": text}, where)


def _array(path: Path, dimensions: int) -> np.ndarray:
    """Return the bytes of a file in the shape that it says.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as handle:
            header = handle.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise UserError(f"{path}: is no IDX file of bytes in {dimensions} dimensions.")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            if not 0 < math.prod(shape) <= _MOST_BYTES:
                raise UserError(f"{path}: says that it holds {' x '.join(map(str, shape))} bytes.")
            content = handle.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(content) != math.prod(shape):
        raise UserError(f"{path}: is not as long as its first bytes say ({' x '.join(map(str, shape))}).")
    return np.frombuffer(content, np.uint8).reshape(shape)
