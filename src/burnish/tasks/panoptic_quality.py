"""Panoptic quality: how well the segments of images are found, counted image by image.

Source: Kirillov et al. 2019, section 4: two segments of a class are the same if their intersection is more than half of
their union, which no segment can have with two others that do not overlap.
"""

from __future__ import annotations

import numpy as np

#: What `summary` returns.
SUMMARY = ("panoptic_quality", "segmentation_quality", "recognition_quality")


def count(
    shared: np.ndarray,
    sizes: np.ndarray,
    labels: np.ndarray,
    true_sizes: np.ndarray,
    true_labels: np.ndarray,
    ignored: np.ndarray,
    unknown: np.ndarray,
    classes: int,
) -> np.ndarray:
    """Return of each class the sum of overlaps, what was found, what was found wrongly and what was missed: [classes, 4].

    Args:
        shared: pixels that each segment found has in common with each true one: [found, true].
        sizes: pixels of what was found, with the `labels`: [found]. Segments of one image do not overlap.
        true_sizes: of the true ones, with their `true_labels`, and which are `ignored` (crowds): [true].
        unknown: pixels of each segment found that nobody knows: [found].
    """
    same = (labels[:, None] == true_labels[None]) & ~ignored
    union = (sizes - unknown)[:, None] + true_sizes[None] - shared
    overlap = np.where(same, shared / np.maximum(union, 1), 0.0)
    hit = overlap > 0.5
    excused = unknown + (shared * ((labels[:, None] == true_labels[None]) & ignored)).sum(1)
    wrong = ~hit.any(1) & (excused <= 0.5 * sizes)
    missed = ~hit.any(0) & ~ignored
    found = np.zeros((classes, 4))
    np.add.at(found[:, 0], true_labels, (overlap * hit).sum(0))
    np.add.at(found[:, 1], true_labels, hit.any(0))
    np.add.at(found[:, 2], labels, wrong)
    np.add.at(found[:, 3], true_labels, missed)
    return found


def quality(counts: np.ndarray) -> np.ndarray:
    """Return panoptic quality and its two factors, the mean overlap of what was found and how much was: [classes, 3].

    A class that neither occurs nor was found is NaN.

    Args:
        counts: of `count`, added up over images.

    >>> quality(np.array([[1.6, 2, 1, 1]])).round(3).tolist()
    [[0.533, 0.8, 0.667]]
    """
    overlap, hits, wrong, missed = counts.T
    all_of_them = hits + (wrong + missed) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        recognised = hits / all_of_them
        segmented = np.where(hits > 0, overlap / np.maximum(hits, 1), 0.0)
        whole = np.where(all_of_them > 0, segmented * recognised, np.nan)
    return np.stack([whole, np.where(all_of_them > 0, segmented, np.nan), recognised], 1)


def summary(counts: np.ndarray) -> dict[str, float]:
    """Return the means over the classes that occur or were found.

    Args:
        counts: of `count`, added up over images.
    """
    found = quality(counts)
    known = ~np.isnan(found[:, 0])
    values = found[known].mean(0) if known.any() else np.zeros(3)
    return dict(zip(SUMMARY, values.tolist(), strict=True))
