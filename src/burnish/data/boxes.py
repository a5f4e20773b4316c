"""Boxes around objects: read as people write them, checked, moved with their image, merged over tiles.

Inside burnish a box is [left, top, right, bottom] in pixels of its image, float32, the left top corner of the image 0, 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: How far outside the image a box may reach by rounding, in pixels.
_ROUNDING = 1.0
#: A box that moved out of the image stays a target while this share of its area is inside.
KEPT_SHARE = 0.2
#: Two boxes that overlap by more than this share are taken for one object, where an image is seen by tiles.
_SAME_SHARE = 0.5
#: Share of a tile that it has in common with the next one.
_OVERLAP = 0.25

_BOXES, _CATEGORIES = ("bbox", "boxes"), ("category", "categories", "label", "labels")
_ORDER = {
    "xywh": "[left, top, width, height]",
    "xyxy": "[left, top, right, bottom]",
    "cxcywh": "[middle x, middle y, width, height], as shares of the image",
}


@dataclass(frozen=True)
class Objects:
    """What a row says of the objects in its image.

    Args:
        boxes: as they are written, float64 [objects, 4].
        names: of their categories.
        ignored: which of them are neither learned nor counted, such as COCO's crowds.
        order: what the numbers of a box are, if the format of the file says it.
    """

    boxes: np.ndarray
    names: list[str]
    ignored: np.ndarray
    order: str | None = None


def objects_of(value: Any) -> Objects | str:
    """Return the objects that a value of a row stands for, or why it stands for none.

    Args:
        value: `{"bbox": [[...], ...], "category": [...]}` as `datasets` keeps them, its JSON, or a list of one such mapping
            for each object; `ignored` and `order` may stand there too.
    """
    if isinstance(value, Objects):  # read already
        return value
    if isinstance(value, str):  # as a csv holds them
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, list | tuple | np.ndarray):
        value = {"bbox": [_of(one, _BOXES) for one in value], "category": [_of(one, _CATEGORIES) for one in value]}
    boxes, names = _of(value, _BOXES), _of(value, _CATEGORIES)
    if boxes is None or names is None:
        return f"its objects are not laid out as {{'bbox': [[...], ...], 'category': [...]}} (found {str(value)[:60]})"
    if len(boxes) != len(names):
        return f"its objects have {len(boxes)} boxes and {len(names)} categories"
    for number, (box, name) in enumerate(zip(boxes, names, strict=True), 1):
        if not _is_box(box):
            return f"box {number} is {str(box)[:60]}, not four finite numbers"
        if name is None or not str(name).strip():
            return f"box {number} has no category"
    found = np.array([list(box) for box in boxes], np.float64).reshape(-1, 4)
    ignored = np.array(value.get("ignored", [False] * len(found)), bool)
    return Objects(found, [str(name).strip() for name in names], ignored, value.get("order"))


def _of(value: Any, names: tuple[str, ...]) -> Any:
    return next((value[name] for name in names if name in value), None) if isinstance(value, Mapping) else None


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(np.isfinite(float(number)) for number in box)
    except (TypeError, ValueError):
        return False


def corners(boxes: np.ndarray, order: str, height: int, width: int) -> np.ndarray:
    """Return boxes of any order of numbers as [left, top, right, bottom] in pixels.

    >>> corners(np.array([[1.0, 2.0, 3.0, 4.0]]), "xywh", 10, 10).tolist()
    [[1.0, 2.0, 4.0, 6.0]]
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    if order == "xyxy":
        return boxes
    if order == "xywh":
        return np.concatenate([first, first + second], 1)
    scale = np.array([width, height] * 2)
    return np.concatenate([first - second / 2, first + second / 2], 1) * scale


def shares(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return boxes [left, top, right, bottom] in pixels as [middle x, middle y, width, height], shares of their image.

    >>> shares(np.array([[1.0, 2.0, 4.0, 6.0]]), 10, 10).tolist()
    [[0.25, 0.4, 0.3, 0.4]]
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(first + second) / 2, second - first], 1) / np.array([width, height] * 2)


def checked(objects: Objects, order: str, height: int, width: int) -> np.ndarray | str:
    """Return the boxes of an image of this size inside it, float32 [objects, 4], or what is wrong with one of them.

    Args:
        order: of the numbers, where the file's format does not say it.
    """
    known, order = objects.order, objects.order or order
    found = corners(objects.boxes, order, height, width)
    problems = _problems(found, height, width)
    wrong = next((number for number, problem in enumerate(problems) if problem), None)
    if wrong is None:
        return np.clip(found, 0, [width, height] * 2).astype(np.float32)
    shown = ", ".join(f"{value:g}" for value in objects.boxes[wrong])
    said = f"box {wrong + 1}, [{shown}], {problems[wrong]}, read as {_ORDER[order]}"
    other = "xyxy" if order == "xywh" else "xywh"
    if order == "cxcywh" or any(_problems(corners(objects.boxes, other, height, width), height, width)):
        return said
    way = f"this format has them as {_ORDER[order]}: write them so" if known else f"give --task.box {other}"
    return f"{said}; read as {_ORDER[other]} every box of the image lies inside it: {way}"


def _problems(found: np.ndarray, height: int, width: int) -> list[str]:
    """Return what is wrong with each box [left, top, right, bottom]; nothing if nothing is."""
    problems = []
    for left, top, right, bottom in found.tolist():
        inside = min(left, top) >= -_ROUNDING and right <= width + _ROUNDING and bottom <= height + _ROUNDING
        if right < left or bottom < top:
            problems.append("ends before it begins")
        elif not inside:
            problems.append(f"reaches outside the image of {width} x {height}")
        elif min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
            problems.append("is empty")
        else:
            problems.append("")
    return problems


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the area of each box."""
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1)


def common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the area that each of some boxes has in common with each of others: [first, second]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def cut(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes cut off at the edges of an image, and which of them have enough left to be learned."""
    inside = np.clip(boxes, 0, [width, height] * 2)
    return inside, areas(inside) > np.maximum(KEPT_SHARE * areas(boxes), 0)


def moved(boxes: np.ndarray, matrix: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes around what their image's pixels became, cut off at its edges, and which of them stay targets.

    Args:
        matrix: where each pixel goes (`burnish.data.augment.motion`).
    """
    xs, ys = boxes[:, [0, 2, 2, 0]] - 0.5, boxes[:, [1, 1, 3, 3]] - 0.5  # pixels' middles are whole numbers there
    points = np.stack([xs, ys, np.ones_like(xs)], 1)  # [boxes, 3, corners]
    x, y = (matrix @ points)[:, :2].transpose(1, 0, 2) + 0.5
    return cut(np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1), height, width)


def tiles(height: int, width: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tiles of an image as [left, top, right, bottom]: squares that overlap by a quarter; a small one is itself.

    >>> list(tiles(60, 100, 64))
    [(0, 0, 64, 60), (36, 0, 100, 60)]
    """
    for top in _starts(height, size):
        for left in _starts(width, size):
            yield left, top, min(width, left + size), min(height, top + size)


def _starts(length: int, size: int) -> list[int]:
    if length <= size:
        return [0]
    count = int(np.ceil((length - size) / (size * (1 - _OVERLAP)))) + 1
    return [round(start) for start in np.linspace(0, length - size, count)]


def merged(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, tile: np.ndarray, torn: np.ndarray) -> np.ndarray:
    """Return which boxes of all tiles of an image stay, best first: an object on several tiles is counted once.

    Of two boxes of one category that overlap by more than half of their union the better one stays; on different tiles,
    where one of them may be a piece, by more than half of the smaller one.

    Args:
        tile: number of the tile that each box [boxes, 4] was found on.
        torn: whether it ends where its tile does and the image goes on; a whole box stands before it.
    """
    order = np.lexsort((-scores, torn))
    kept: list[int] = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(int(first))
        shared = common(boxes[first : first + 1], boxes[order])[0]
        own, theirs = areas(boxes[first]), areas(boxes[order])
        same = (shared > _SAME_SHARE * (own + theirs - shared)) | (
            (shared > _SAME_SHARE * np.minimum(own, theirs)) & (tile[order] != tile[first])
        )
        order = order[~(same & (labels[order] == labels[first]))]
    found = np.array(kept, int)
    return found[np.argsort(-scores[found], kind="stable")]
