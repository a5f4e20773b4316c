"""Mean average precision of boxes as COCO measures it: matched image by image, so that any choice of images is cheap.

Source: Lin et al. 2014 and COCO's own evaluation code, whose rules these are: all areas, 100 boxes an image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burnish.data.boxes import areas, common

#: Overlaps from which a box is found, the recalls at which precision is read, and how many boxes of a class count.
OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
MOST_BOXES = 100


@dataclass(frozen=True)
class Matched:
    """What became of the boxes found in one image.

    Args:
        scores, labels: of each box found, best first: [found].
        hits: at each overlap, whether it is a true one: bool [found, overlaps].
        ignored: at each overlap, whether it counts neither way.
        counts: true boxes of each class: [classes].
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    counts: np.ndarray


def match(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    true_boxes: np.ndarray,
    true_labels: np.ndarray,
    ignored: np.ndarray,
    classes: int,
    most: int = MOST_BOXES,
) -> Matched:
    """Return what is true of the boxes found in an image; the better one of two takes a true box first.

    Args:
        boxes: found, [found, 4], with their `scores` and `labels`.
        true_boxes: [true, 4], with their `true_labels`, and which are `ignored`: any number of boxes may lie in such a one.
        most: so many of the best boxes found of a class count.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels = boxes[order].astype(np.float64), scores[order], labels[order]
    kept = np.concatenate([np.flatnonzero(labels == one)[:most] for one in range(classes)] or [np.zeros(0, int)])
    kept = np.sort(kept)
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    hits = np.zeros((len(boxes), len(OVERLAPS)), bool)
    beside = np.zeros_like(hits)
    for one in np.unique(labels):
        found, true = np.flatnonzero(labels == one), np.flatnonzero(true_labels == one)
        true = true[np.argsort(ignored[true], kind="stable")]
        hits[found], beside[found] = _match_class(boxes[found], true_boxes[true].astype(np.float64), ignored[true])
    counts = np.bincount(true_labels[~ignored], minlength=classes)
    return Matched(scores, labels, hits, beside, counts)


def _match_class(boxes: np.ndarray, true: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which boxes of one class, best first, are hits and which are ignored, at each overlap.

    Args:
        true: those that count first.
    """
    shared = common(boxes, true)
    own, theirs = areas(boxes)[:, None], areas(true)[None]
    overlap = shared / np.maximum(np.where(ignored, own, own + theirs - shared), 1e-12)
    hits = np.zeros((len(boxes), len(OVERLAPS)), bool)
    beside, taken = np.zeros_like(hits), np.zeros((len(true), len(OVERLAPS)), bool)
    for index in range(len(boxes)):
        free = (overlap[index][:, None] >= OVERLAPS) & (~taken | ignored[:, None])
        for part, result in ((~ignored, hits), (ignored, beside)):
            places = np.flatnonzero(part)
            if not len(places):
                continue
            fits = free[places]
            # of equal overlaps the last one, as in COCO's code
            best = places[::-1][np.where(fits, overlap[index, places][:, None], -1.0)[::-1].argmax(0)]
            won = fits.any(0) & ~hits[index]
            result[index] |= won
            taken[best[won], np.flatnonzero(won)] = True
    return hits, beside


def average_precisions(images: Sequence[Matched]) -> tuple[np.ndarray, np.ndarray]:
    """Return the average precision and the recall of each class at each overlap: [classes, overlaps] both.

    Classes without a true box are NaN.
    """
    counts = np.sum([image.counts for image in images], 0)
    scores, labels = (np.concatenate([getattr(image, name) for image in images]) for name in ("scores", "labels"))
    hits, ignored = (np.concatenate([getattr(image, name) for image in images]) for name in ("hits", "ignored"))
    precision = np.full((len(counts), len(OVERLAPS)), np.nan)
    recall = precision.copy()
    for one in np.flatnonzero(counts):
        rows = np.flatnonzero(labels == one)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        right = np.cumsum(hits[rows], 0)
        given = np.cumsum(~ignored[rows], 0)
        reached = right / counts[one]
        sharp = right / np.maximum(given, 1e-12)
        sharp = np.maximum.accumulate(sharp[::-1], 0)[::-1]
        for place in range(len(OVERLAPS)):
            at = np.searchsorted(reached[:, place], _RECALLS, "left")
            precision[one, place] = np.append(sharp[:, place], 0.0)[at].mean()
        recall[one] = reached[-1] if len(rows) else 0.0
    return precision, recall
