"""Masks: as people keep them, moved with their images, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.data.masks import VOID, Shapes, is_mask, mask_file, mask_of, painted, runs, shrunk
from burnish.errors import UserError
from burnish.tasks.image_segmentation import ImageSegmentation
from burnish.terminal import Terminal
from helpers import patches, session_of

QUIET = Terminal(quiet=True)
RANDOM = np.random.default_rng(0)


def toy(folder: Path, **train: Any) -> dict[str, Any]:
    return {
        "model": {"preset": "segformer-nano", "image_size": 32},
        "data": {"train": str(folder)},
        "train": {"length": "4 steps", "batch": 6, "precision": "fp32", **train},
    }


def made(**facts: Any) -> ImageSegmentation:
    from burnish.data.processor import make_processor

    facts = {"labels": ["a", "b", "c"], "numbers": [0, 1, 2]} | facts
    return ImageSegmentation(ImageSegmentation.Settings(), make_processor(8), facts)


def test_masks_are_found_beside_their_images_and_are_no_rows(patches_folder: Path) -> None:
    image = sorted((patches_folder / "images").iterdir())[0]
    assert mask_file(image) == patches_folder / "masks" / image.name
    assert is_mask(patches_folder / "masks" / image.name) and not is_mask(image)
    session = session_of("image-segmentation", patches_folder.parent / "run", **toy(patches_folder))
    assert sum(session.splits.counts.values()) == len(list((patches_folder / "images").iterdir()))
    assert session.task.names == ["0", "1", "3"]  # numbers with a gap


def test_outlines_become_masks() -> None:
    square = {"category": ["box", "hole"], "segmentation": [[[1, 1, 5, 1, 5, 4, 1, 4]], [[2, 2, 3, 2, 3, 3, 2, 3]]]}
    shapes = mask_of(json.dumps(square), "x", Path())
    assert isinstance(shapes, Shapes)
    mask = painted(shapes, ["background", "box", "hole"], 8, 7)
    wanted = np.zeros((8, 7), np.uint8)
    wanted[1:5, 1:6], wanted[2:4, 2:4] = 1, 2
    assert np.array_equal(mask, wanted)
    packed = mask_of({"category": ["box"], "segmentation": [runs(wanted > 0)]}, "x", Path())
    assert np.array_equal(painted(packed, ["background", "box"], 8, 7), wanted > 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"category": ["a"], "segmentation": []}, "does not have as many categories as segmentations"),
        ({"category": ["a"], "segmentation": [[[1, 2, 3, 4]]]}, "at least three points"),
        ({"category": ["a"], "segmentation": [[]]}, "without any polygon"),
        ({"category": ["a"], "segmentation": [{"size": [2, 2], "counts": "abc"}]}, "packed as text"),
        ({"category": ["a"], "segmentation": [{"size": [2, 2], "counts": [1, 2]}]}, "do not fill its size"),
        ("{", "is not valid JSON"),
        ("gone.png", "is no file"),
    ],
)
def test_what_is_no_mask_says_why(value: Any, reason: str) -> None:
    found = mask_of(value, "x", Path())
    assert isinstance(found, str) and reason in found


def test_an_outline_outside_its_image_is_named() -> None:
    shapes = Shapes(["a"], [[[1, 1, 50, 1, 50, 4]]])
    assert "lies outside the image, which is 7 wide and 8 high" in painted(shapes, ["background", "a"], 8, 7)


def test_a_mask_is_shrunk_to_the_nearest() -> None:
    mask = RANDOM.integers(0, 3, (12, 20)).astype(np.uint8)
    assert np.array_equal(shrunk(mask, 12, 20), mask)
    wanted = np.asarray(Image.fromarray(mask).resize((10, 6), Image.Resampling.NEAREST))
    assert np.array_equal(shrunk(mask, 6, 10), wanted)


def test_the_mask_moves_with_its_image() -> None:
    """A bright disc stays under its mask, whatever moves it; what comes in from outside is void."""
    from burnish.config import AugmentSettings
    from burnish.data.processor import make_processor

    task = ImageSegmentation(
        ImageSegmentation.Settings(), make_processor(40), {"labels": ["a", "b"], "numbers": [0, 1]}
    )
    task.augment = AugmentSettings(flip="both", shift=0.2, rotate=60, crop=0.5)
    rows, columns = np.mgrid[:40, :40]
    disc = ((rows - 15) ** 2 + (columns - 24) ** 2 < 60).astype(np.uint8)
    pixels = np.repeat(255 * disc[..., None], 3, 2)
    example = {
        "pixels": pixels.reshape(-1), "shape": np.array([40, 40]), "truth": disc.reshape(-1), "size": np.array([40, 40]),
        "positions": np.array([1]),
    }  # fmt: skip
    void = 0
    for draw in range(40):
        batch = task.collate([task.vary(example, draw)])
        bright = batch.inputs["pixel_values"][0, 0] > 0
        labels = batch.targets["labels"][0]
        known = labels >= 0
        wrong = (bright != (labels == 1)) & known
        edge = 0.06 * 1600  # bilinear and nearest part at the rim
        assert int(wrong.sum()) < edge, draw
        void += int((~known).sum())
        assert batch.weights["loss"] == int(known.sum())
    assert void > 0


def test_void_is_neither_learned_nor_counted(tmp_path: Path) -> None:
    task = made()
    truth = np.array([[0, 1], [VOID, 2]], np.uint8)
    logits = torch.full((3, 2, 2), -9.0)
    for (row, column), number in {(0, 0): 0, (0, 1): 2, (1, 0): 1, (1, 1): 2}.items():
        logits[number, row, column] = 9.0
    found = task._compared(logits, torch.from_numpy(truth))
    assert (
        found["hits"].tolist() == [1, 0, 1]
        and found["there"].tolist() == [1, 1, 1]
        and found["found"].tolist() == [1, 0, 2]
    )
    records = {name: np.stack([np.asarray(value)]) for name, value in found.items() if name != "shown"}
    metrics = task.metrics(records)
    assert metrics["mean_iou"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert metrics["mean_dice"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(2 / 3)


def test_counts_agree_with_torchmetrics() -> None:
    from torchmetrics.functional.segmentation import mean_iou

    task = made()
    logits, truth = torch.randn(5, 3, 16, 16), torch.randint(0, 3, (5, 16, 16), dtype=torch.uint8)
    found = [task._compared(one, mask) for one, mask in zip(logits, truth, strict=True)]
    records = {name: np.stack([np.asarray(one[name]) for one in found]) for name in ("hits", "found", "there", "loss")}
    whole = logits.argmax(1).reshape(1, 80, 16), truth.long().reshape(1, 80, 16)
    wanted = mean_iou(*whole, num_classes=3, input_format="index")
    assert task.metrics(records)["mean_iou"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda mask: mask[:-2], "its mask 32 and 30"),
        (lambda mask: np.repeat(mask[..., None], 3, 2), "is a mask in colours"),
        (lambda mask: np.where(mask == 0, 77, mask).astype(np.uint8), "has the number 77 at row"),
    ],
    ids=["size", "colours", "number"],
)
def test_a_mask_that_does_not_fit_is_left_out_and_named(spoil: Any, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "patches"
    patches(folder, 110)
    bad = sorted((folder / "masks").iterdir())[7]
    Image.fromarray(spoil(np.asarray(Image.open(bad)))).save(bad)
    given = toy(folder) | {"task": {"labels": ["ground", "disc", "nothing", "square"]}}
    run = burnish.train("image-segmentation", terminal=QUIET, run={"dir": str(tmp_path / "run")}, **given)
    [rejected] = (run.path / "rejects.jsonl").read_text().splitlines()
    assert reason in rejected and bad.name in rejected


def test_predictions_are_for_the_image_as_it_is(patches_folder: Path, tmp_path: Path) -> None:
    """Masks in the image's own size; they draw the picture that belongs to them; what is exported opens in transformers."""
    import transformers

    run = burnish.train("image-segmentation", terminal=QUIET, run={"dir": str(tmp_path / "run")}, **toy(patches_folder))
    pixels = RANDOM.integers(0, 256, (45, 61, 3), np.uint8)
    answer = run.predict(pixels)
    json.dumps(answer)
    assert all(one["mask"]["size"] == [45, 61] and sum(one["mask"]["counts"]) == 45 * 61 for one in answer["segments"])
    assert sum(one["share"] for one in answer["segments"]) == pytest.approx(1, abs=1e-5)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(run.folder.model).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(run.folder.model, backend="pil")
    with torch.inference_mode():
        logits = model(**processor(Image.fromarray(pixels), return_tensors="pt")).logits
    wanted = torch.nn.functional.interpolate(logits, (45, 61), mode="bilinear").argmax(1)[0].numpy()
    for one in answer["segments"]:
        assert one["mask"] == runs(wanted == model.config.label2id[one["label"]])


def test_numbers_that_count_objects_are_refused(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="the masks hold 399 numbers, and at most 254 classes"):
        burnish.train(
            "image-segmentation",
            dry_run=True,
            terminal=QUIET,
            **toy(tmp_path) | {"data": {"train": str(tmp_path), "holdout": "0%"}},
        )


def test_masks_cannot_be_blended(patches_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"augment\.mixup: masks cannot be blended"):
        session_of("image-segmentation", tmp_path / "run", augment={"mixup": 0.5}, **toy(patches_folder))
