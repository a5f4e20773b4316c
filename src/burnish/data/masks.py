"""Masks, which say of each pixel of an image what it shows: read as people keep them, drawn from outlines, shrunk, packed."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.pictures import Picture, picture_of

#: Folders of masks that lie beside a folder of images, in which a mask has the name of its image.
_FOLDERS, _IMAGES = ("masks", "annotations", "labels", "SegmentationClass"), ("images", "JPEGImages")
#: The number of pixels that are neither learned nor counted.
VOID = 255
#: What pixels outside all outlines show.
BACKGROUND = "background"
#: How strongly a mask colours the image it lies on.
_TINT = 0.5


@dataclass(frozen=True)
class Shapes:
    """A mask as outlines, later ones over earlier ones.

    Args:
        names: of what each shows.
        outlines: of each: polygons [x, y, x, y, ...], or `{"size": [height, width], "counts": [...]}`, the lengths of runs
            outside and inside, down the columns.
        ignored: which of them are crowds of what is not told apart; without any, none is.
    """

    names: list[str]
    outlines: list[Any]
    ignored: Sequence[bool] = ()


@dataclass(frozen=True)
class Segments:
    """A mask as a picture whose colours number segments, red + 256 green + 65,536 blue, as COCO's panoptic files have it.

    Args:
        names: of a segment's category, by its number; 0 is no segment.
        ignored: numbers of crowds.
        stuff: the categories that are not counted, such as sky.
    """

    picture: Picture
    names: Mapping[int, str]
    ignored: frozenset[int] = frozenset()
    stuff: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Segment:
    """An object, or all of some stuff, in an image.

    Args:
        inside: bool [height, width].
        ignored: neither learned nor counted, such as a crowd.
    """

    name: str
    inside: np.ndarray
    ignored: bool = False


def mask_of(value: Any, where: str, folder: Path) -> Picture | Shapes | Segments | str:
    """Return the mask that a value of a row stands for, or why it stands for none.

    Args:
        value: what `picture_of` takes, or `{"category": [...], "segmentation": [...]}` with `ignored` if need be, or its JSON.
        where: of the row.
        folder: from which a path is taken.
    """
    if isinstance(value, Shapes | Segments):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            return f"is not valid JSON ({str(error)[:80]})"
    if isinstance(value, Mapping) and "segmentation" in value:
        names, outlines = value.get("category"), value["segmentation"]
        if not isinstance(names, list) or not isinstance(outlines, list) or len(names) != len(outlines):
            return "does not have as many categories as segmentations"
        problem = next((found for one in outlines if (found := _problem(one))), None)
        return problem or Shapes([str(name) for name in names], outlines, value.get("ignored") or ())
    return picture_of(value, where, folder)


def _problem(outline: Any) -> str | None:
    """Return what is wrong with an outline."""
    if isinstance(outline, Mapping):
        counts = outline.get("counts")
        if not isinstance(counts, list) or len(outline.get("size", ())) != 2:
            return "has runs that are packed as text; give polygons, or counts as a list of numbers"
        return None if sum(counts) == outline["size"][0] * outline["size"][1] else "has runs that do not fill its size"
    if not isinstance(outline, list) or not outline:
        return "has a segmentation without any polygon"
    for polygon in outline:
        numbers = isinstance(polygon, list) and all(isinstance(value, int | float) for value in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            return "has a polygon that is not a list of at least three points: x, y, x, y, ..."
    return None


def mask_file(image: Path) -> Path | None:
    """Return the mask of an image: of `images/A.jpg` it is `masks/A.png`. None: there is none."""
    parts = list(image.absolute().parts)
    places = [index for index, part in enumerate(parts[:-1]) if part in _IMAGES]
    if not places:
        return None
    for folder in _FOLDERS:
        parts[places[-1]] = folder
        file = Path(*parts).with_suffix(".png")
        if file.is_file():
            return file
    return None


def is_mask(file: Path) -> bool:
    """Return whether a picture lies in a folder of masks beside one of images."""
    around = [place for place in file.absolute().parents if place.name in _FOLDERS]
    return any((place.parent / images).is_dir() for place in around[:1] for images in _IMAGES)


def painted(shapes: Shapes, names: Sequence[str], height: int, width: int) -> np.ndarray | str:
    """Return outlines as a mask, uint8 [height, width], 0 where there is none; or why they do not fit.

    Args:
        names: of the numbers.
    """
    mask = np.zeros((height, width), np.uint8)
    for segment in outlined(shapes, height, width):
        if isinstance(segment, str):
            return segment
        mask[segment.inside] = names.index(segment.name)
    return mask


def outlined(shapes: Shapes, height: int, width: int) -> Iterator[Segment | str]:
    """Yield what each outline has inside, or why it does not fit an image of this size."""
    from PIL import Image, ImageDraw

    crowds = shapes.ignored or [False] * len(shapes.names)
    for name, outline, ignored in zip(shapes.names, shapes.outlines, crowds, strict=True):
        if isinstance(outline, Mapping):
            if list(outline["size"]) != [height, width]:
                yield f"runs of {name!r} are for an image of another size, {outline['size']}"
            else:
                yield Segment(name, unpacked(outline["counts"], height, width), bool(ignored))
            continue
        image = Image.new("1", (width, height))
        pen = ImageDraw.Draw(image)
        for polygon in outline:
            xs, ys = polygon[::2], polygon[1::2]
            if min(xs) < -1 or min(ys) < -1 or max(xs) > width + 1 or max(ys) > height + 1:
                yield f"a polygon of {name!r} lies outside the image, which is {width} wide and {height} high"
            pen.polygon(polygon, fill=1)
        yield Segment(name, np.array(image), bool(ignored))


def numbered(segments: Segments, pixels: np.ndarray) -> Iterator[Segment | str]:
    """Yield what each segment of a picture [height, width, 3] has inside, or what is wrong with one."""
    numbers = pixels.astype(np.int64) @ np.array([1, 256, 65_536])
    found = set(np.unique(numbers).tolist()) - {0}
    for number, name in segments.names.items():
        if number not in found:
            yield f"{segments.picture.name} has no pixel of the segment {number} ({name})"
        else:
            yield Segment(name, numbers == number, number in segments.ignored)
    if strange := sorted(found - segments.names.keys()):
        yield f"{segments.picture.name} has the segment {strange[0]}, which its json does not list"


def shrunk(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask in another size, each pixel that of the nearest place."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns]


def runs(inside: np.ndarray) -> dict[str, Any]:
    """Return where a mask [height, width] is true as COCO keeps it: lengths of runs outside and inside, down the columns.

    >>> runs(np.array([[False, True], [False, True], [True, True]]))
    {'size': [3, 2], 'counts': [2, 4]}
    """
    flat = inside.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(inside.shape), "counts": [0, *counts] if flat[0] else counts}


def unpacked(counts: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    """Return lengths of runs, as `runs` gives them, as a mask: bool [height, width]."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def tinted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image [height, width, 3] with a mask of its size laid over it, a colour for each number but 0 and void."""
    shown = (mask != 0) & (mask != VOID)
    colors = np.array([color_of(number) for number in range(VOID)], np.float32)[np.where(shown, mask, 0)]
    mixed = (1 - _TINT) * pixels + _TINT * colors
    return np.where(shown[..., None], np.rint(mixed), pixels).astype(np.uint8)


def color_of(number: int) -> tuple[int, int, int]:
    """Return a colour for a class; neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + 0.61803 * number) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
