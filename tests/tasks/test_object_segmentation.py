"""Masks of single objects: one gradient however a step is cut, read as people keep them, measured as COCO does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.data.masks import Shapes, mask_of, runs, unpacked
from burnish.data.pictures import Picture
from burnish.data.processor import make_processor
from burnish.errors import UserError
from burnish.task import Row
from burnish.tasks import average_precision, panoptic_quality
from burnish.tasks.image_segmentation import ImageSegmentation, ImageSegmentationSettings
from burnish.tasks.mask_loss import MaskLoss, Target
from burnish.terminal import Terminal
from helpers import gradient_of, session_of
from shapes import folder_of_shapes

QUIET = Terminal(quiet=True)
SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mask2former": {
        "backbone_config": SWIN,
        "feature_size": 64,
        "mask_feature_size": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 2,
        "num_queries": 8,
    },
    "maskformer": {
        "backbone_config": SWIN,
        "fpn_feature_size": 64,
        "mask_feature_size": 64,
        "decoder_config": {
            "model_type": "detr",
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "num_queries": 8,
            "dropout": 0.0,
        },
    },
}


def model_of(kind: str, classes: int = 1) -> Any:
    """Return a small model of a family with random weights, far enough apart that queries differ."""
    from transformers import AutoConfig, AutoModelForUniversalSegmentation

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **FAMILIES[kind], num_labels=classes)
    model = AutoModelForUniversalSegmentation.from_config(config).eval()
    with torch.no_grad():
        for value in (value for value in model.parameters() if value.requires_grad):
            value += 0.1 * torch.randn_like(value)
    return model


def saved(kind: str, folder: Path) -> Path:
    """Write a small model as a pretrained folder."""
    model_of(kind).save_pretrained(str(folder))
    make_processor(64).save_pretrained(
        str(folder)
    )  # smaller, and a group of a norm is two numbers of a map's one place
    return folder


def task_of(facts: dict[str, Any], side: int = 16, **settings: Any) -> Any:
    """Return the task as a Mask2Former does it."""
    from transformers import AutoConfig

    given = ImageSegmentationSettings(**settings)
    task = ImageSegmentation.suited(AutoConfig.for_model("mask2former"), given)
    known = {"stuff": [], "left_out": [], **facts}
    return task(given, make_processor(side), known)


@pytest.fixture(scope="module")
def outlines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images of none to three rectangles, whose outlines a table has."""
    folder = folder_of_shapes(tmp_path_factory.mktemp("outlines") / "train", 40, 32, 3)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        boxes, names = row.pop("objects").values()
        corners = [[[x, y, x + w - 1, y, x + w - 1, y + h - 1, x, y + h - 1]] for x, y, w, h in boxes]
        row["mask"] = {"category": names, "segmentation": corners}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# -- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings"), [("maskformer", {}), ("mask2former", {"kind": "semantic"})])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    kind: str, settings: dict[str, Any], outlines: Path, tmp_path: Path
) -> None:
    """A mean of the means of micro-batches, as Trainer takes it, is another gradient. Mask2Former's: tests/contract."""
    session = session_of(
        "image-segmentation",
        tmp_path / "run",
        model={"path": str(saved(kind, tmp_path / kind))},
        data={"train": str(outlines)},
        task=settings,
        augment={"flip": "both", "shift": 0.3},
        train={"batch": 6, "precision": "fp32", "dropout": 0},
    )
    session.join()
    apart = lambda found, wanted: float((found - wanted).norm() / wanted.norm())  # noqa: E731
    wanted = gradient_of(session, 6)
    assert 0 < wanted.norm() < 1e4
    for micro_batch in (2, 1):
        assert apart(gradient_of(session, micro_batch), wanted) <= 1e-5
    assert apart(gradient_of(session, 2, mean=True), wanted) > 1e-3


def targets(side: int, classes: int) -> list[Target]:
    """Return two images with three rectangles and with one."""
    random, found = np.random.default_rng(0), []
    for count in (3, 1):
        masks = torch.zeros(count, side, side)
        for mask in masks:
            top, left = random.integers(0, side // 2, 2)
            mask[top : top + side // 2, left : left + side // 3] = 1
        found.append(Target(torch.from_numpy(random.integers(0, classes, count)), masks, torch.ones(side, side)))
    return found


def mean_of(loss: MaskLoss, output: Any, wanted: list[Target]) -> float:
    """Return the loss as transformers means it, where the batch at hand is all there is."""
    weights = loss.weights([len(one.numbers) for one in wanted])
    return float(sum(value / weights[name] for name, value in loss(output, wanted).items()))


def test_the_loss_of_one_batch_is_maskformers_own() -> None:
    """On masks of the size of the model's maps, where nothing is shrunk."""
    model, pixels, wanted = model_of("maskformer", 3), torch.randn(2, 3, 32, 32), targets(8, 3)
    labels = {"mask_labels": [one.masks for one in wanted], "class_labels": [one.numbers for one in wanted]}
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **labels, output_auxiliary_logits=True)
        assert mean_of(MaskLoss.of(model), theirs, wanted) == pytest.approx(float(theirs.loss), rel=1e-5)


def test_all_pixels_are_what_mask2formers_points_stand_for() -> None:
    """Its own loss with a great many points, drawn evenly, comes near ours; ours does not change from call to call."""
    model, pixels, wanted = model_of("mask2former", 3), torch.randn(2, 3, 32, 32), targets(8, 3)
    model.criterion.num_points = model.criterion.matcher.num_points = 40_000
    model.criterion.oversample_ratio, model.criterion.importance_sample_ratio = 1, 0
    labels = {"mask_labels": [one.masks for one in wanted], "class_labels": [one.numbers for one in wanted]}
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **labels, output_auxiliary_logits=True)
        loss = MaskLoss.of(model)
        ours = mean_of(loss, theirs, wanted)
        assert ours == pytest.approx(float(theirs.loss), rel=0.03)
        assert ours == mean_of(loss, theirs, wanted)
        turned = [Target(one.numbers, 1 - one.masks, one.known) for one in wanted]
        assert mean_of(loss, theirs, turned) != pytest.approx(ours, rel=0.03)


def test_pixels_that_nobody_knows_do_not_count() -> None:
    loss, wanted = MaskLoss.of(model_of("mask2former", 3)), targets(8, 3)[:1]
    wanted[0].known[:, 5:] = 0
    draw = torch.Generator().manual_seed(0)
    layer: dict[str, Any] = {
        "class_queries_logits": torch.randn(1, 8, 4, generator=draw),
        "masks_queries_logits": torch.randn(1, 8, 8, 8, generator=draw),
    }

    class Output(dict):
        auxiliary_logits = None

    before = float(loss(Output(layer), wanted)["masks"])
    layer["masks_queries_logits"][..., 6] += 5
    assert float(loss(Output(layer), wanted)["masks"]) == pytest.approx(before, rel=1e-6)
    layer["masks_queries_logits"][..., 3] += 5
    assert float(loss(Output(layer), wanted)["masks"]) != pytest.approx(before, rel=1e-2)


# -- what is there ---------------------------------------------------------------------------------------------------


def examples(kind: str, mask: Any, pixels: np.ndarray, **settings: Any) -> tuple[Any, Any]:
    """Return the task that learned one row, and its example."""
    settings_of, rows = ImageSegmentationSettings(kind=kind, **settings), [Row({"image": "x", "mask": mask}, "x")]
    facts = task_of({"labels": ["x"]}, kind=kind, **settings).learn(rows, settings_of)
    task = task_of(facts, 8, kind=kind, **settings)
    row = Row({"image": Picture("image", pixels), "mask": mask}, "x")
    return task, task.example(row, lambda picture, how: picture.content)


def test_all_layouts_give_the_same_objects() -> None:
    """Two squares as polygons, as runs, as numbers, as Cityscapes numbers them, and as COCO's panoptic colours."""
    from burnish.data.masks import Segments

    image = np.zeros((8, 8, 3), np.uint8)
    first, second = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    first[1:4, 1:4], second[5:7, 4:8] = True, True
    polygons = [[[1, 1, 3, 1, 3, 3, 1, 3]], [[4, 5, 7, 5, 7, 6, 4, 6]]]
    coloured = np.zeros((8, 8, 3), np.uint8)
    coloured[first], coloured[second] = (0, 1, 0), (3, 0, 1)
    segments = Segments(Picture("m", coloured), {256: "thing", 65539: "thing"})
    masks: dict[str, tuple[Any, dict[str, Any]]] = {
        "polygons": (Shapes(["thing", "thing"], polygons), {}),
        "runs": (Shapes(["thing", "thing"], [runs(first), runs(second)]), {}),
        "numbers": (Picture("m", (7 * first + 9 * second).astype(np.uint16)), {"labels": ["ground", "thing"]}),
        "cityscapes": (
            Picture("m", (1001 * first + 1002 * second).astype(np.uint16)),
            {"labels": ["ground", "thing"], "divisor": 1000},
        ),
        "panoptic": (segments, {}),
    }
    for layout, (mask, settings) in masks.items():
        task, example = examples("instance", mask, image, **settings)
        assert task.names == ["thing"], layout
        known, *found = task._masks(example)
        assert known.all() and [one.tolist() for one in found] == [first.tolist(), second.tolist()], layout
    for layout in ("polygons", "numbers", "cityscapes"):
        task, example = examples("panoptic", masks[layout][0], image, **masks[layout][1])
        around = task.names[0]
        assert task.facts["stuff"] == [around] and example["numbers"].tolist().count(0) == 1, layout
        known, *found = task._masks(example)
        assert known.all() and np.sum(found, 0).tolist() == np.ones((8, 8)).tolist(), layout
    task, example = examples("panoptic", segments, image)
    known, *found = task._masks(example)
    assert known.tolist() == (first | second).tolist() and len(found) == 2  # what no segment covers, nobody knows


def test_cocos_panoptic_files_are_read(tmp_path: Path) -> None:
    """For single objects, for all segments, and for the class of each pixel; a crowd is neither learned nor counted."""
    (tmp_path / "images").mkdir()
    (tmp_path / "panoptic_train").mkdir()
    numbers = np.zeros((20, 24), np.int64)
    numbers[:10], numbers[12:18, 2:8], numbers[12:18, 12:20] = 1000, 70_000, 3
    shades = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], -1).astype(np.uint8)
    random = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "images" / name)
        Image.fromarray(shades).save(tmp_path / "panoptic_train" / name)
    listed = [
        {"id": 1000, "category_id": 9, "iscrowd": 0},
        {"id": 70_000, "category_id": 4, "iscrowd": 0},
        {"id": 3, "category_id": 4, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": number, "file_name": name, "segments_info": listed} for number, name in enumerate(names)
        ],
        "categories": [{"id": 9, "name": "sky", "isthing": 0}, {"id": 4, "name": "dog", "isthing": 1}],
    }
    file = tmp_path / "panoptic_train.json"
    file.write_text(json.dumps(content))
    given: dict[str, Any] = {"data": {"train": str(file), "holdout": "0%"}}
    found = {}
    for kind, preset in (("instance", "mask2former"), ("panoptic", "mask2former"), (None, "segformer")):
        model = {"preset": f"{preset}-nano", "image_size": 32}
        session = session_of("image-segmentation", tmp_path / f"{kind}", model=model, task={"kind": kind}, **given)
        found[kind] = session.task, session.stores["train"][0]
    task, example = found["instance"]
    assert task.names == ["dog"] and example["numbers"].tolist() == [0, 0] and example["ignored"].tolist() == [0, 1]
    assert len(task._target(example)[0]) == 1 and not task._target(example)[1][0].all()  # nobody knows what a crowd is
    task, example = found["panoptic"]
    assert task.names == ["dog", "sky"] and task.facts["stuff"] == ["sky"] and len(example["numbers"]) == 3
    task, example = found[None]
    assert task.names == ["dog", "sky"]
    wanted = np.where(numbers == 1000, 1, np.where(numbers > 0, 0, 255))
    assert example["truth"].reshape(20, 24).tolist() == wanted.tolist()
    content["annotations"][1]["segments_info"] = listed[:2]
    content["annotations"][2]["segments_info"] = [*listed, {"id": 5, "category_id": 4}]
    file.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"1.png has the segment 3, which its json does not list.*no pixel of the segment 5"
    ):
        model = {"preset": "mask2former-nano", "image_size": 32}
        session_of("image-segmentation", tmp_path / "bad", model=model, **given)


def test_masks_move_with_their_image() -> None:
    """Bright squares stay under their masks, whatever moves them; what comes in from outside is not known."""
    from burnish.config import AugmentSettings

    task = task_of({"labels": ["thing"]}, 40)
    task.augment = AugmentSettings(flip="both", shift=0.2, rotate=60, crop=0.5)
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 8:20, 10:25], masks[1, 24:34, 20:36] = True, True
    packed = [np.array(runs(one)["counts"]) for one in (np.ones((40, 40), bool), *masks)]
    example = {
        "pixels": np.repeat(255 * masks.any(0)[..., None], 3, 2).astype(np.uint8).reshape(-1),
        "shape": np.array([40, 40]), "size": np.array([40, 40]), "runs": np.concatenate(packed),
        "lengths": np.array([len(one) for one in packed]), "numbers": np.array([0, 0]), "ignored": np.array([0, 0]),
    }  # fmt: skip
    unknown = 0
    for draw in range(20):
        seen = task.vary(example, draw)
        _, (known, *moved) = task._target(seen)
        bright = task.images([seen])[0, 0].numpy() > 0
        covered = np.any(moved, 0) if moved else np.zeros((40, 40), bool)
        assert ((bright != covered) & (known > 0)).sum() < 0.06 * 1600, draw  # bilinear and nearest part at the rim
        unknown += int((known == 0).sum())
    assert unknown > 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"task": {"kind": "instance"}, "model": {"preset": "segformer-nano"}},
            "task.kind: instance is for a model that",
        ),
        ({"task": {"divisor": 1000}, "model": {"preset": "segformer-nano"}}, "task.divisor: 1000 is for a model that"),
        ({"augment": {"cutmix": 0.2}}, "augment.cutmix: masks cannot be blended"),
        ({"task": {"divisor": 1000}}, "data.mask: no training row has an object"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    settings: dict[str, Any], sentence: str, patches_folder: Path, tmp_path: Path
) -> None:
    given = {"data": {"train": str(patches_folder)}, **settings}
    given["model"] = {"preset": "mask2former-nano", "image_size": 32, **settings.get("model", {})}
    with pytest.raises(UserError, match=sentence):
        session_of("image-segmentation", tmp_path / "run", **given)


# -- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_of_masks_is_cocos_own(seed: int, tmp_path: Path) -> None:
    """Masks found around true ones, some of them crowds, classes that do not occur: as `faster-coco-eval` has it."""
    import faster_coco_eval as coco

    random = np.random.default_rng(seed)
    images, annotations, results, matched = [], [], [], []
    task = task_of({"labels": ["0", "1", "2"]})
    for image in range(1, 7):
        count = int(random.integers(0, 6))
        true = np.array([blob(random) for _ in range(count)], bool).reshape(count, 40, 50)
        labels, crowd = random.integers(0, 2, count), random.random(count) < 0.2
        near = [
            np.roll(true[random.integers(count)], random.integers(-2, 3, 2), (0, 1)) for _ in range(12 * (count > 0))
        ]
        found = np.array([*near, *(blob(random) for _ in range(5))], bool)
        scores = np.sort(random.random(len(found)).round(2))[::-1]
        guessed = random.integers(0, 3, len(found))
        packed = [np.array(runs(one)["counts"]) for one in (np.ones((40, 50), bool), *true)]
        truth = {
            "size": np.array([40, 50]), "runs": np.concatenate(packed), "numbers": labels, "ignored": crowd.astype(int),
            "lengths": np.array([len(one) for one in packed]),
        }  # fmt: skip
        from burnish.tasks.object_segmentation import Found

        matched.append(task._compared(Found(found, scores, guessed), truth)["matched"])
        images.append({"id": image, "width": 50, "height": 40, "file_name": f"{image}.png"})
        for mask, label, ignored in zip(true, labels.tolist(), crowd.tolist(), strict=True):
            given = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": int(ignored)}
            shape = {"segmentation": runs(mask), "area": float(mask.sum()), "bbox": [0, 0, 50, 40]}
            annotations.append({**given, **shape})
        for mask, label, score in zip(found, guessed.tolist(), scores.tolist(), strict=True):
            shape = coco.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            shape = {
                **shape,
                "counts": shape["counts"] if isinstance(shape["counts"], str) else shape["counts"].decode(),
            }
            results.append({"image_id": image, "category_id": label, "score": score, "segmentation": shape})
    categories = [{"id": number, "name": str(number)} for number in range(3)]
    file = tmp_path / "true.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    truth = coco.COCO(str(file))
    measure = coco.COCOeval_faster(truth, truth.loadRes(results), "segm")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    stats = np.asarray(measure.stats)
    found = average_precision.summary(matched)
    assert 0.05 < found["map"] < 0.95
    assert tuple(found.values()) == pytest.approx((stats[0], stats[1], stats[2], stats[8]), abs=1e-9)


def blob(random: np.random.Generator) -> np.ndarray:
    """Return an ellipse somewhere in 40 x 50 pixels."""
    rows, columns = np.mgrid[:40, :50]
    down, across, tall, wide = *random.integers(5, 35, 2), *random.integers(3, 12, 2)
    return ((rows - down) / tall) ** 2 + ((columns - across) / wide) ** 2 < 1


def test_panoptic_quality_by_hand() -> None:
    """One row of ten pixels for each rule of Kirillov et al. 2019, section 4.3."""

    def counted(found: list[str], classes: list[int], true: list[str], labels: list[int], **more: str) -> list[float]:
        """Return the counts of class 0. Each text has a 1 for each pixel inside."""
        ours, theirs = (np.array([[*map(int, one)] for one in part]).reshape(-1, 10) for part in (found, true))
        crowd = np.array([*map(int, more.get("crowd", "0" * len(true)))], bool)
        nobody = np.array([*map(int, more.get("unknown", "0" * 10))])
        given = ours @ theirs.T, ours.sum(1), np.array(classes, int), theirs.sum(1), np.array(labels, int), crowd
        return panoptic_quality.count(*given, ours @ nobody, 2)[0].tolist()

    true = ["1111110000"]
    assert counted(["1111111100"], [0], true, [0]) == [6 / 8, 1, 0, 0]
    assert counted(["0011111100"], [0], true, [0]) == [0, 0, 1, 1]  # 4 of 8 is not more than half
    assert counted(["1111111100"], [1], true, [0]) == [0, 0, 0, 1]  # another class
    assert counted(["0011111111"], [0], true, [0], unknown="0000001111") == [4 / 6, 1, 0, 0]  # the union is without it
    assert counted(["0000001111"], [0], true, [0], unknown="0000001110") == [0, 0, 0, 1]  # mostly unknown: not wrong
    assert counted(["0000001111"], [0], true, [0], unknown="0000001100") == [0, 0, 1, 1]  # just half
    assert counted(["1111100000"], [0], true, [0], crowd="1") == [0, 0, 0, 0]  # in a crowd of its class: neither way
    assert counted(["1111100000"], [0], true, [1], crowd="1") == [0, 0, 1, 0]
    two = np.array([[0.75 + 0.85, 2, 1, 1], [0, 0, 0, 0]])
    found = panoptic_quality.summary(two)  # the second class neither occurs nor was found
    assert found["panoptic_quality"] == pytest.approx(1.6 / 3)
    assert found["segmentation_quality"] == pytest.approx(0.8) and found["recognition_quality"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "quality"), [("instance", "map"), ("panoptic", "panoptic_quality")])
def test_a_model_that_finds_what_is_there_is_right_in_all(
    kind: str, quality: str, patches_folder: Path, tmp_path: Path
) -> None:
    """Logits made from the truth, at the size of the images: no error is left, and none is without them."""
    given = {"model": {"preset": "mask2former-nano", "image_size": 32}, "data": {"train": str(patches_folder)}}
    session = session_of("image-segmentation", tmp_path / "run", task={"kind": kind}, **given)
    task, store = session.task, session.stores["validation"]
    records: list[dict[str, Any]] = []
    for number in range(len(store)):
        masks, numbers = task._masks(store[number])[1:], store[number]["numbers"]
        classes = torch.full((9, len(task.names) + 1), -9.0)
        classes[:, -1] = 9.0
        maps = torch.full((9, 32, 32), -9.0)
        for query, (mask, label) in enumerate(zip(masks, numbers.tolist(), strict=True)):
            classes[query, -1], classes[query, label] = -9.0, 9.0
            maps[query][torch.from_numpy(mask)] = 9.0
        records.append(task._compared(task._found(classes, maps, 32, 32), store[number]))
    name = "counts" if kind == "panoptic" else "matched"
    column = np.empty(len(records), object)
    column[:] = [record[name] for record in records]
    assert task.metrics({name: column})[quality] == pytest.approx(1.0)
    assert task.metrics({name: column[:1]})[quality] == pytest.approx(1.0)
    assert task.figures({name: column})[0]["rows"]


def test_panoptic_segments_do_not_overlap() -> None:
    """A pixel goes to the query most certain of it; what is hidden for the most part is dropped; stuff is one segment."""
    task = task_of({"labels": ["sky", "thing"], "stuff": ["sky"]}, kind="panoptic")
    certain = {0: (1, 0.99, slice(0, 6)), 1: (1, 0.9, slice(5, 10)), 2: (1, 0.8, slice(1, 6)), 3: (0, 0.9, slice(10, 13)),
               4: (0, 0.9, slice(13, 16)), 5: (2, 0.99, slice(0, 16)), 6: (1, 0.4, slice(0, 16))}  # fmt: skip
    classes, maps = torch.full((7, 3), 1e-9), torch.full((7, 4, 16), -9.0)
    for query, (label, chance, columns) in certain.items():
        classes[query, label], classes[query, (label + 1) % 3] = chance, 1 - chance
        maps[query, :, columns] = 9.0
    classes[6] = torch.tensor([0.3, 0.4, 0.3])  # below the threshold
    found = task._found(classes.log(), maps, 4, 16)
    columns = [np.flatnonzero(one.all(0)).tolist() for one in found.insides]
    assert columns == [list(range(6)), list(range(6, 10)), list(range(10, 16))]
    assert found.labels.tolist() == [1, 1, 0] and found.scores.tolist() == pytest.approx([0.99, 0.9, 0.9])


# -- whole runs ------------------------------------------------------------------------------------------------------


def test_predictions_are_for_the_image_as_it_is(patches_folder: Path, tmp_path: Path) -> None:
    """From an exported folder plain transformers computes the same; masks have the image's own size."""
    from transformers import AutoModelForUniversalSegmentation

    run = burnish.train(
        "image-segmentation",
        model=str(saved("mask2former", tmp_path / "model")),
        data=str(patches_folder),
        train={"length": "3 steps", "batch": 8, "precision": "fp32"},
        task={"threshold": 0.05},
        run={"dir": str(tmp_path / "run")},
        terminal=QUIET,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    answer = run.predict(pixels)
    json.dumps(answer)
    masks = [unpacked(one["mask"]["counts"], 45, 61) for one in answer["segments"]]
    assert masks and all(one["mask"]["size"] == [45, 61] for one in answer["segments"])
    scores = [one["score"] for one in answer["segments"]]
    assert scores == sorted(scores, reverse=True)
    model = AutoModelForUniversalSegmentation.from_pretrained(run.path / "model").eval()
    processor = make_processor(64)
    with torch.no_grad():
        output = model(**processor(Image.fromarray(pixels), return_tensors="pt"))
    chance = output.class_queries_logits[0].softmax(-1)[:, 0]
    wide = torch.nn.functional.interpolate(output.masks_queries_logits, (45, 61), mode="bilinear")[0].sigmoid()
    found = [float(chance[i] * wide[i][wide[i] > 0.5].mean()) for i in range(8) if (wide[i] > 0.5).any()]
    assert scores == pytest.approx(sorted((one for one in found if one >= 0.05), reverse=True), abs=1e-5)


def test_a_set_of_masks_tells_classes_apart(patches_folder: Path, tmp_path: Path) -> None:
    """By Mask2Former as by SegFormer: mean overlap of classes, answers for each class, and transformers' own map of classes."""
    from transformers import AutoModelForUniversalSegmentation, Mask2FormerImageProcessorPil

    run = burnish.train(
        "image-segmentation",
        preset="mask2former-nano",
        model={"image_size": 64},
        data=str(patches_folder),
        task={"kind": "semantic"},
        train={"length": "20 steps", "batch": 8, "precision": "fp32"},
        optim={"lr": 2e-3},
        run={"dir": str(tmp_path / "run")},
        terminal=QUIET,
    )
    assert run.metrics["validation"]["pixel_accuracy"] > 0.7 and "mean_iou" in run.metrics["validation"]
    file = str(sorted((patches_folder / "images").iterdir())[0])
    answer = run.predict(file)
    assert sum(one["share"] for one in answer["segments"]) == pytest.approx(1, abs=1e-5)
    model = AutoModelForUniversalSegmentation.from_pretrained(run.path / "model").eval()
    with torch.no_grad():
        output = model(**make_processor(64)(Image.open(file), return_tensors="pt"))
    [theirs] = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(output, [(32, 32)])
    same = sum(
        int((unpacked(one["mask"]["counts"], 32, 32) & (theirs.numpy() == model.config.label2id[one["label"]])).sum())
        for one in answer["segments"]
    )
    assert same > 0.97 * 32 * 32  # it enlarges masks twice


def test_a_crowd_in_a_table_is_read() -> None:
    value = {"category": ["a", "a"], "segmentation": [[[1, 1, 3, 1, 3, 3]]] * 2, "ignored": [False, True]}
    found = mask_of(value, "x", Path())
    assert isinstance(found, Shapes) and list(found.ignored) == [False, True]
