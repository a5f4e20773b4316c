"""Images as rows have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.media import Medium, file_of


class Picture(Medium):
    """An image; its pixels, where it is decoded already: uint8 [height, width] or [height, width, 3]."""

    def decoded(self, kind: str, rate: int) -> np.ndarray:
        pixels = self.content
        assert isinstance(pixels, np.ndarray)  # asked of such content
        grey = kind != "mask" and pixels.ndim == 2
        return np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if grey else pixels


def picture_of(value: Any, where: str, folder: Path) -> Picture | str:
    """Return the image that a value of a row stands for, or why it stands for none.

    Args:
        value: a path, bytes, `{"bytes": ..., "path": ...}` as `datasets` keeps images, pixels, or an image of PIL's.
        where: of the row.
        folder: from which a path is taken.
    """
    if isinstance(value, Picture):
        return value
    found = file_of(value, where, folder, Picture)
    if not isinstance(found, tuple):
        return found
    [value] = found
    if hasattr(value, "convert"):
        value = np.asarray(value.convert("RGB"))
    if isinstance(value, np.ndarray):
        fits = value.dtype == np.uint8 and value.size and value.shape[2:] in ((), (3,)) and value.ndim > 1
        return (
            Picture(where, value)
            if fits
            else f"has pixels of {value.dtype} {value.shape}, not uint8 [height, width, 3]"
        )
    return f"is {type(value).__name__}, not an image"
