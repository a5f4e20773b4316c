"""Mean average precision of boxes or masks as COCO measures it: matched image by image, so that any choice is cheap.

Source: Lin et al. 2014 and COCO's own evaluation code, whose rules these are: all areas, 100 boxes an image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Overlaps from which a box or mask is found, the recalls at which precision is read, and how many of a class count.
OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
MOST_BOXES = 100
#: What `summary` returns.
SUMMARY = ("map", "map_50", "map_75", "mean_recall")


@dataclass(frozen=True)
class Matched:
    """What became of the boxes or masks found in one image.

    Args:
        scores, labels: of each one found, best first: [found].
        hits: at each overlap, whether it is a true one: bool [found, overlaps].
        ignored: at each overlap, whether it counts neither way.
        counts: true ones of each class: [classes].
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    counts: np.ndarray


def match(
    shared: np.ndarray,
    sizes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    true_sizes: np.ndarray,
    true_labels: np.ndarray,
    ignored: np.ndarray,
    classes: int,
    most: int = MOST_BOXES,
) -> Matched:
    """Return what is true of the boxes or masks found in an image; the better one of two takes a true one first.

    Args:
        shared: area that each one found has in common with each true one: [found, true].
        sizes: areas of what was found, with their `scores` and `labels`: [found].
        true_sizes: of the true ones, with their `true_labels`, and which are `ignored`: any number may lie in such a one.
        most: so many of the best ones found of a class count.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.concatenate([np.flatnonzero(labels[order] == one)[:most] for one in range(classes)] or [np.zeros(0, int)])
    order = order[np.sort(kept)]
    shared, sizes, scores, labels = shared[order], sizes[order], scores[order], labels[order]
    union = sizes[:, None] + true_sizes[None] - shared
    overlap = shared / np.maximum(np.where(ignored, sizes[:, None], union), 1e-12)
    hits = np.zeros((len(scores), len(OVERLAPS)), bool)
    beside = np.zeros_like(hits)
    for one in np.unique(labels):
        found, true = np.flatnonzero(labels == one), np.flatnonzero(true_labels == one)
        true = true[np.argsort(ignored[true], kind="stable")]
        hits[found], beside[found] = _match_class(overlap[np.ix_(found, true)], ignored[true])
    counts = np.bincount(true_labels[~ignored], minlength=classes)
    return Matched(scores, labels, hits, beside, counts)


def _match_class(overlap: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of those found of one class, best first, are hits and which are ignored, at each overlap.

    Args:
        overlap: with each true one, those first that count: [found, true].
    """
    hits = np.zeros((len(overlap), len(OVERLAPS)), bool)
    beside, taken = np.zeros_like(hits), np.zeros((len(ignored), len(OVERLAPS)), bool)
    for index in range(len(overlap)):
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

    Classes of which nothing is there are NaN.
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


def summary(images: Sequence[Matched]) -> dict[str, float]:
    """Return COCO's means over the classes: precision over all overlaps, at 0.5 and at 0.75, and recall."""
    precision, recall = average_precisions(images)
    known = ~np.isnan(precision[:, 0])
    if not known.any():  # no row drawn has an object
        return dict.fromkeys(SUMMARY, 0.0)
    values = precision[known].mean(), precision[known, 0].mean(), precision[known, 5].mean(), recall[known].mean()
    return dict(zip(SUMMARY, map(float, values), strict=True))


def table(images: Sequence[Matched], names: Sequence[str], counted: str) -> dict[str, Any]:
    """Return a figure of the classes.

    Args:
        counted: what the numbers of true ones count, such as boxes.
    """
    precision, recall = average_precisions(images)
    counts = np.sum([image.counts for image in images], 0)
    rows = [
        [name, int(counts[i]), float(precision[i].mean()), float(precision[i, 0]), float(recall[i].mean())]
        for i, name in enumerate(names)
        if counts[i]
    ]
    columns = ["category", counted, "average precision", "at overlap 0.5", "recall"]
    return {"kind": "table", "title": "Categories", "columns": columns, "rows": rows}


def mistakes(image: Matched, threshold: float) -> int:
    """Return how many objects of an image are missed or wrongly found, of those with at least this score."""
    given = image.scores >= threshold
    right = int(image.hits[given, 0].sum())
    return int(image.counts.sum()) - right + int((~image.hits[given, 0] & ~image.ignored[given, 0]).sum())
