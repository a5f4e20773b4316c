"""Boxes: what people write is read or refused with the reason, moves with its image, and is merged over tiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from burnish.config import AugmentSettings
from burnish.data.augment import motion
from burnish.data.augment import moved as moved_images
from burnish.data.boxes import Objects, checked, cut, merged, moved, objects_of, tiles


def objects(*boxes: list[float], order: str | None = None) -> Objects:
    return Objects(np.array(boxes, np.float64), ["a"] * len(boxes), np.zeros(len(boxes), bool), order)


def test_the_layouts_of_a_row_are_read_alike() -> None:
    wanted = objects_of({"bbox": [[1, 2, 3, 4]], "category": ["cat"]})
    assert isinstance(wanted, Objects) and wanted.names == ["cat"]
    for given in (
        {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]},
        {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]},
        [{"bbox": [1, 2, 3, 4], "category": "cat"}],
        '{"bbox": [[1, 2, 3, 4]], "category": ["cat"]}',
    ):
        found = objects_of(given)
        assert isinstance(found, Objects) and found.names == ["cat"] and np.array_equal(found.boxes, wanted.boxes)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bbox": [[1, 2, 3]], "category": ["a"]}, "box 1 is [1, 2, 3], not four finite numbers"),
        ({"bbox": [[1, 2, 3, float("nan")]], "category": ["a"]}, "not four finite numbers"),
        ({"bbox": [[1, 2, 3, 4]], "category": []}, "1 boxes and 0 categories"),
        ({"bbox": [[1, 2, 3, 4]], "category": [None]}, "box 1 has no category"),
        ({"x": 1}, "not laid out as"),
        ("no", "not laid out as"),
    ],
)
def test_what_is_no_list_of_boxes_says_why(value: object, reason: str) -> None:
    found = objects_of(value)
    assert isinstance(found, str) and reason in found


@pytest.mark.parametrize(
    ("box", "order", "reason"),
    [
        ([90, 10, 30, 20], "xywh", "reaches outside the image of 100 x 80"),
        ([10, 10, 0, 20], "xywh", "is empty"),
        ([50, 10, 20, 30], "xyxy", "ends before it begins"),
        ([10, 10, -5, 20], "xywh", "ends before it begins"),
        ([-3, 10, 20, 20], "xywh", "reaches outside"),
    ],
)
def test_a_wrong_box_is_named(box: list[float], order: str, reason: str) -> None:
    found = checked(objects([5, 5, 10, 10], box), order, 80, 100)
    assert isinstance(found, str) and found.startswith("box 2, [") and reason in found


def test_boxes_in_the_other_order_are_told_apart() -> None:
    corners = [[60, 40, 90, 70], [10, 5, 40, 60]]
    found = checked(objects(*corners), "xywh", 80, 100)
    assert isinstance(found, str) and found.endswith("give --task.box xyxy")
    found = checked(objects([60, 40, 30, 30]), "xyxy", 80, 100)
    assert isinstance(found, str) and found.endswith("give --task.box xywh")
    found = checked(objects(*corners, order="xywh"), "xyxy", 80, 100)
    assert isinstance(found, str) and "this format has them as [left, top, width, height]" in found
    assert isinstance(checked(objects(*corners), "xyxy", 80, 100), np.ndarray)


def test_rounding_is_clipped_and_shares_become_pixels() -> None:
    found = checked(objects([-0.6, 0, 101, 80.4]), "xywh", 80, 100)
    assert isinstance(found, np.ndarray) and found.tolist() == [[0, 0, 100, 80]]
    found = checked(objects([0.5, 0.25, 0.2, 0.5], order="cxcywh"), "xywh", 80, 100)
    assert isinstance(found, np.ndarray) and np.allclose(found, [[40, 0, 60, 40]])


@pytest.mark.parametrize("draw", range(12))
def test_boxes_move_with_their_image(draw: int) -> None:
    """A bright rectangle on black, mirrored, enlarged and shifted by whole matrices: its box still fits it to a pixel."""
    import torch

    settings = AugmentSettings(flip="both", crop=0.6, shift=0.1)
    image = torch.zeros(1, 1, 40, 60)
    image[..., 12:25, 20:38] = 1
    matrix = motion(settings, 7919 * draw + 1, 40, 60)
    seen = moved_images(image, [matrix], nearest=True)[0, 0] > 0.5
    boxes, stays = moved(np.array([[20.0, 12, 38, 25]]), matrix, 40, 60)
    if seen.sum() < 20:
        assert not stays[0] or np.prod(boxes[0, 2:] - boxes[0, :2]) < 60
        return
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(boxes[0] - np.array([float(edge) for edge in wanted])).max() <= 1.0


def test_what_is_mostly_cut_off_is_no_target() -> None:
    inside, stays = cut(np.array([[-9.0, 0, 1, 10], [-5, 0, 5, 10], [20, 0, 30, 10]]), 10, 20)
    assert stays.tolist() == [False, True, False]
    assert inside[1].tolist() == [0, 0, 5, 10]


@pytest.mark.parametrize(("height", "width"), [(40, 50), (64, 64), (65, 200), (1000, 333)])
def test_tiles_cover_an_image_and_overlap(height: int, width: int) -> None:
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in tiles(height, width, 64):
        assert right - left == min(64, width) and bottom - top == min(64, height)
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    if height > 64:
        starts = sorted({top for _, top, _, _ in tiles(height, width, 64)})
        assert max(b - a for a, b in pairwise(starts)) <= 48


def test_an_object_on_two_tiles_is_found_once_and_whole() -> None:
    boxes = np.array([[10.0, 0, 30, 10], [20, 0, 30, 10], [50, 0, 60, 10], [51, 0, 61, 10], [52, 2, 60, 7]])
    scores, tile = np.array([0.6, 0.9, 0.8, 0.7, 0.5]), np.array([0, 1, 0, 0, 0])
    torn = np.array([False, True, False, False, False])
    labels = np.zeros(5, int)
    assert merged(boxes, scores, labels, tile, torn).tolist() == [
        2,
        0,
        4,
    ]  # one inside another on one tile is an object
    assert merged(boxes, scores, np.array([0, 1, 0, 1, 0]), tile, torn).tolist() == [1, 2, 3, 0, 4]
    assert merged(boxes[:0], scores[:0], labels[:0], tile[:0], torn[:0]).tolist() == []
