"""Average precision: a case worked out by hand, and COCO's own evaluation on random boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.data.boxes import areas, common
from burnish.tasks.average_precision import Matched, average_precisions, match, summary


def matched(found: np.ndarray, scores: np.ndarray, labels: np.ndarray, true: np.ndarray, *more: Any) -> Matched:
    """Return `match` of boxes."""
    return match(common(found, true), areas(found), scores, labels, areas(true), *more)


def test_a_case_worked_out_by_hand() -> None:
    """Two true boxes; the best found is right, the second wrong, the third right at overlaps up to 0.6 only."""
    true = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    found = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 6]])
    one = matched(found, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), true, np.zeros(2, int), np.zeros(2, bool), 1)
    precision, recall = average_precisions([one])
    # precision 1 up to recall 0.5 (51 of 101 points), then 2/3 up to 1 (50 points), while the third counts
    assert precision[0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert precision[0, 2] == precision[0, 0] and recall[0, 2] == 1
    assert precision[0, 3] == pytest.approx(51 / 101) and recall[0, 3] == 0.5


def test_images_and_classes_without_boxes() -> None:
    nothing = np.zeros((0, 4))
    empty = matched(nothing, np.zeros(0), np.zeros(0, int), nothing, np.zeros(0, int), np.zeros(0, bool), 2)
    precision, _ = average_precisions([empty])
    assert np.isnan(precision).all()


@pytest.mark.parametrize("seed", range(4))
def test_it_is_cocos_own(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random boxes around true ones, some crowds, equal scores, classes that do not occur: as `faster-coco-eval` has it."""
    import faster_coco_eval as coco

    random = np.random.default_rng(seed)
    classes, images, annotations, results, images_matched = 3, [], [], [], []
    for image in range(1, 9):
        count = int(random.integers(0, 12))
        low = random.uniform(0, 80, (count, 2))
        true = np.concatenate([low, low + random.uniform(5, 40, (count, 2))], 1)
        labels, crowd = random.integers(0, classes - 1, count), random.random(count) < 0.15
        near = true[random.integers(0, max(1, count), 30)] if count else np.zeros((0, 4))
        found = near + random.normal(0, 3, near.shape)
        extra = random.uniform(0, 80, (10, 2))
        found = np.concatenate([found, np.concatenate([extra, extra + 20], 1)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores, guessed = random.random(len(found)).round(2), random.integers(0, classes, len(found))
        images_matched.append(matched(found, scores, guessed, true, labels, crowd, classes))
        images.append({"id": image, "width": 200, "height": 200, "file_name": f"{image}.png"})
        for box, label, ignored in zip(true, labels.tolist(), crowd.tolist(), strict=True):
            size = box[2:] - box[:2]
            given = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": int(ignored)}
            annotations.append({**given, "bbox": [*box[:2], *size], "area": float(size.prod())})
        for box, label, score in zip(found, guessed.tolist(), scores.tolist(), strict=True):
            given = {"image_id": image, "category_id": label, "score": score}
            results.append({**given, "bbox": [*box[:2], *(box[2:] - box[:2])]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(3)],
    }
    file = tmp_path / "true.json"
    file.write_text(json.dumps(content, default=float))
    truth = coco.COCO(str(file))
    measure = coco.COCOeval_faster(truth, truth.loadRes(json.loads(json.dumps(results, default=float))), "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    ours = tuple(summary(images_matched).values())
    stats = np.asarray(measure.stats)
    assert ours == pytest.approx((stats[0], stats[1], stats[2], stats[8]), abs=1e-9)
