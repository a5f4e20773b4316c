"""Object detection: one gradient however a step is cut, boxes checked and moved, average precision as COCO's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForObjectDetection

import burnish
from burnish.api import predict
from burnish.cli import main
from burnish.data.boxes import checked
from burnish.data.processor import make_processor
from burnish.data.rows import Rows, find_parts
from burnish.errors import UserError
from burnish.models.vision import settle
from burnish.ops.batch_norm import hold_batch_norm
from burnish.task import BrokenRow
from burnish.tasks.object_detection import Found
from burnish.terminal import Terminal
from helpers import gradient_of, session_of
from shapes import folder_of_shapes

QUIET = Terminal(quiet=True)
SMALL_RESNET = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 24],
}
SMALL_DETR: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 12,
    "dropout": 0.0,
}
SMALL_HYBRID: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_layers": 3,
    "num_queries": 12,
    "encoder_in_channels": [12, 16, 24],
    "decoder_in_channels": [32, 32, 32],
    "backbone_config": {
        **SMALL_RESNET,
        "model_type": "rt_detr_resnet",
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
SMALL_GROUPS: dict[str, Any] = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_n_points": 2,
    "num_queries": 12,
    "group_detr": 3,
    "dropout": 0.0,
}
SMALL_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "num_windows": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "yolos": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": [64, 64],
        "patch_size": 16,
        "num_detection_tokens": 12,
        "use_mid_position_embeddings": False,
    },
    "detr": {**SMALL_DETR, "backbone_config": {**SMALL_RESNET, "out_features": ["stage4"]}},
    "conditional_detr": {**SMALL_DETR, "backbone_config": {**SMALL_RESNET, "out_features": ["stage4"]}},
    "deformable_detr": {
        **SMALL_DETR,
        "backbone_config": {**SMALL_RESNET, "out_features": ["stage2", "stage3", "stage4"]},
        "with_box_refine": True,
        "num_feature_levels": 3,
    },
    "rt_detr": SMALL_HYBRID,
    "rt_detr_v2": SMALL_HYBRID,
    "d_fine": SMALL_HYBRID,
    "lw_detr": {
        **SMALL_GROUPS,
        "projector_scale_factors": [1.0],
        "backbone_config": {**SMALL_VIT, "model_type": "lw_detr_vit", "pretrain_image_size": 64, "out_indices": [1, 2]},
    },
    "rf_detr": {
        **SMALL_GROUPS,
        "projector_scale_factors": [1.0],
        "backbone_config": {
            **SMALL_VIT,
            "model_type": "rf_detr_dinov2",
            "patch_size": 8,
            "num_windows": 2,
            "out_indices": [1, 2],
        },
    },
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images of rectangles, some of none."""
    return folder_of_shapes(tmp_path_factory.mktemp("shapes") / "train", 40, 64, 3)


def detector(folder: Path, kind: str) -> Path:
    """Write a small detector of a family, with random weights, as a pretrained folder."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(AutoConfig.for_model(kind, **FAMILIES[kind]))
    with (
        torch.no_grad()
    ):  # a fresh model says nearly the same of every query, so that rounding would match them otherwise
        for value in (value for value in model.parameters() if value.requires_grad):
            value += 0.1 * torch.randn_like(value)
    settle(model, torch.randn(8, 3, 64, 64))
    model.save_pretrained(str(folder))
    make_processor(64).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(kind: str, shapes: Path, tmp_path: Path) -> None:
    session = session_of(
        "object-detection",
        tmp_path / "run",
        model={"path": str(detector(tmp_path / kind, kind))},
        data={"train": str(shapes), "holdout": "0%"},
        train={"batch": 6, "precision": "fp32", "dropout": 0},
    )
    session.join()
    apart = lambda found, wanted: float((found - wanted).norm() / wanted.norm())  # noqa: E731
    wanted = gradient_of(session, 6)
    assert 0 < wanted.norm() < 1e4
    for micro_batch in (2, 1):
        assert apart(gradient_of(session, micro_batch), wanted) <= 1e-5
    assert apart(gradient_of(session, 2, mean=True), wanted) > 1e-2


@pytest.mark.parametrize("kind", ["yolos", "conditional_detr", "deformable_detr", "rt_detr", "d_fine", "lw_detr"])
def test_what_is_trained_is_what_transformers_opens(
    kind: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a detector of other classes to a run, whose exported folder finds in plain transformers what the run finds."""
    from transformers import AutoModelForObjectDetection

    run = burnish.train(
        "object-detection",
        model=str(detector(tmp_path / kind, kind)),
        data={"train": str(shapes)},
        train={"length": "3 steps", "batch": 8, "precision": "fp32", "dropout": 0},
        task={"threshold": 0.01},
        run={"dir": str(tmp_path / "run")},
        terminal=QUIET,
    )
    file = str(sorted(shapes.glob("*.png"))[0])
    answer = run.predict(file)
    assert answer == run.predict(file) and {"label", "score", "box"} == set(answer["objects"][0])
    model = AutoModelForObjectDetection.from_pretrained(run.path / "model").eval()
    pixels = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        output = model(pixel_values=torch.from_numpy(pixels)[None])
    last = output.logits[0].softmax(-1)[:, :-1] if kind == "yolos" else output.logits[0].sigmoid()
    assert answer["objects"][0]["score"] == pytest.approx(float(last.max()), abs=1e-5)
    middle_x, middle_y, width, height = (64 * output.pred_boxes[0, int(last.max(1).values.argmax())]).tolist()
    edges = [middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2]
    assert answer["objects"][0]["box"] == pytest.approx([min(64, max(0, edge)) for edge in edges], abs=0.02)
    if kind == "yolos":  # a setting of the task over the run's
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main(["predict", str(run.path), file, "--task.threshold", "0.999", "--json"])
        assert json.loads(capsys.readouterr().out)["objects"] == []


def test_all_layouts_give_the_same_examples(tmp_path: Path) -> None:
    """The same images and boxes as a table, as COCO's json with gaps in its ids, as VOC's and as YOLO's files."""
    made = folder_of_shapes(tmp_path / "table", 12, 48, 2)
    rows = [json.loads(line) for line in (made / "metadata.jsonl").read_text().splitlines()]
    for name in ("coco/images", "voc/JPEGImages", "yolo/images"):
        shutil.copytree(made, tmp_path / name, ignore=shutil.ignore_patterns("*.jsonl"))
    ids = {"blue": 7, "red": 3}
    annotations = [
        {"id": 0, "image_id": 10 * number, "category_id": ids[name], "bbox": box}
        for number, row in enumerate(rows)
        for box, name in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
    ]
    coco = {
        "images": [{"id": 10 * number, "file_name": row["file_name"]} for number, row in enumerate(rows)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": annotations,
    }
    (tmp_path / "coco" / "boxes.json").write_text(json.dumps(coco))
    (tmp_path / "voc" / "Annotations").mkdir()
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "data.yaml").write_text("names: [blue, red]\n")
    for row in rows:
        objects = list(zip(row["objects"]["bbox"], row["objects"]["category"], strict=True))
        stem = Path(row["file_name"]).stem
        parts = [
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            "</bndbox></object>"
            for (x, y, w, h), name in objects
        ]
        text = f"<annotation><filename>{row['file_name']}</filename>{''.join(parts)}</annotation>"
        (tmp_path / "voc" / "Annotations" / f"{stem}.xml").write_text(text)
        lines = [
            f"{['blue', 'red'].index(name)} {(x + w / 2) / 48} {(y + h / 2) / 48} {w / 48} {h / 48}\n"
            for (x, y, w, h), name in objects
        ]
        if lines:  # an image of nothing needs no file
            (tmp_path / "yolo" / "labels" / f"{stem}.txt").write_text("".join(lines))
    wanted = None
    for name in ("table", "coco", "voc", "yolo"):
        found = list(rows_of(tmp_path / name))
        assert not [row for row in found if isinstance(row, BrokenRow)]
        seen = []
        for row in found:
            boxes = np.round(checked(row.values["objects"], "xywh", 48, 48)).tolist()
            seen.append((Path(str(row.values["image"])).name, row.values["objects"].names, boxes))
        wanted = wanted or sorted(seen)
        assert sorted(seen) == wanted, name


def rows_of(path: Path) -> Iterator[Any]:
    """Yield what a folder or file holds for detection."""
    parts = find_parts([str(path)], "data.train", lambda name, setting: [], "images", True)
    return Rows(parts, {"image": "image", "objects": "objects"}).read()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0].update(category_id=9), "has an object of category 9"),
        (lambda c: c["annotations"][0].update(image_id=9), "is of image 9, which is not there"),
        (
            lambda c: c["images"][0].update(file_name="no.png"),
            "its image lies neither beside boxes.json nor in images/",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), "box 1 is [1, 2], not four finite numbers"),
    ],
)
def test_a_wrong_annotation_of_coco_is_named(change: Any, reason: str, tmp_path: Path) -> None:
    folder_of_shapes(tmp_path, 1, 48, 1)
    (tmp_path / "metadata.jsonl").unlink()
    content = {
        "images": [{"id": 1, "file_name": "000.png"}],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    change(content)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    [broken] = [row for row in rows_of(tmp_path) if isinstance(row, BrokenRow)]
    assert reason in broken.reason


def test_a_lone_json_beside_class_folders_leaves_classification_alone(tmp_path: Path) -> None:
    folder_of_shapes(tmp_path / "cats", 2, 48, 1)
    (tmp_path / "cats" / "metadata.jsonl").unlink()
    (tmp_path / "notes.json").write_text('{"images": [], "annotations": []}')
    parts = find_parts([str(tmp_path)], "data.train", lambda name, setting: [], "images")
    assert [part.path.suffix for part in parts] == [".png", ".png"]


def test_wrong_boxes_stop_a_run_with_file_and_setting(tmp_path: Path) -> None:
    folder = folder_of_shapes(tmp_path, 10, 48, 1)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        x, y, w, h = line["objects"]["bbox"][0]
        line["objects"]["bbox"] = [[x, y, x + w, y + h], [30, 30, 47, 47]]
        line["objects"]["category"] *= 2
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings: dict[str, Any] = {
        "model": {"preset": "yolos-nano", "image_size": 32},
        "data": {"train": str(folder), "holdout": "20%"},
    }
    with pytest.raises(UserError, match=r"metadata.jsonl:\d+: box \d, .* give --task.box xyxy"):
        session_of("object-detection", tmp_path / "run", **settings)
    session_of("object-detection", tmp_path / "run", **settings, task={"box": "xyxy"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"augment": {"mixup": 0.2}}, "augment.mixup: boxes cannot be blended"),
        (
            {"model": {"preset": "rt-detr-nano", "image_size": 64}},
            r"at 64 x 64 pixels a rt_detr has 84 places .* its 100 queries.* Give --model.image-size 96 or more",
        ),
        ({"model": {"preset": "vit-nano"}}, "vit: transformers has no AutoModelForObjectDetection"),
        ({"model": {"preset": "yolos-nano", "backbone": "BERT"}}, "a yolos has no backbone apart from itself"),
        ({"model": {"preset": "rt-detr-nano", "backbone": "BERT"}}, "transformers has no backbone for a bert"),
    ],
)
def test_what_detection_cannot_do_is_one_sentence(
    settings: dict[str, Any], sentence: str, shapes: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    model = {"preset": "yolos-nano", "image_size": 32} | settings.get("model", {})
    if "backbone" in model:
        shutil.copytree(tiny_bert, tmp_path / "bert")
        make_processor(32).save_pretrained(str(tmp_path / "bert"))
        model |= {"backbone": str(tmp_path / "bert"), "image_size": 64}
    with pytest.raises(UserError, match=sentence):
        given = {**settings, "model": model, "data": {"train": str(shapes)}}
        session_of("object-detection", tmp_path / "run", **given)


def test_a_model_that_needs_a_missing_package_says_so() -> None:
    from transformers import AutoConfig

    from burnish.models.load import skeleton

    with pytest.raises(UserError, match=r"needs a package that is missing .*timm"):
        skeleton("AutoModelForObjectDetection", AutoConfig.for_model("dab-detr"))


def test_queries_in_groups_are_learned_as_their_model_means(shapes: Path, tmp_path: Path) -> None:
    """An LW-DETR's own loss of one batch, whose groups each find all boxes, is the sum of our terms by their weights."""
    folder = detector(tmp_path / "model", "lw_detr")
    given = {
        "model": {"path": str(folder)},
        "data": {"train": str(shapes)},
        "train": {"precision": "fp32", "dropout": 0},
    }
    session = session_of("object-detection", tmp_path / "run", **given)
    task, model = session.task, session.fit.model
    batch = task.collate([session.stores["train"][row] for row in range(6)])
    model.train()
    ours = sum(value / batch.weights[name] for name, value in task.loss(model, batch).items())
    plain = AutoModelForObjectDetection.from_pretrained(
        folder, num_labels=len(task.names), ignore_mismatched_sizes=True
    )
    plain.load_state_dict(model.state_dict())
    plain.train()
    hold_batch_norm(plain)
    labels = [
        {"class_labels": numbers[numbers >= 0], "boxes": boxes[numbers >= 0]}
        for boxes, numbers in zip(batch.targets["boxes"], batch.targets["numbers"], strict=True)
    ]
    with torch.no_grad():
        theirs = plain(pixel_values=batch.inputs["pixel_values"], labels=labels).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_a_micro_batch_without_boxes_only_teaches_that_there_are_none(shapes: Path, tmp_path: Path) -> None:
    """transformers' own matchers fail on it."""
    given = {"model": {"path": str(detector(tmp_path / "model", "rt_detr"))}, "data": {"train": str(shapes)}}
    session = session_of("object-detection", tmp_path / "run", **given)
    store = session.stores["train"]
    empty = next(number for number in range(len(store)) if not len(store[number]["numbers"]))
    batch = session.task.collate([store[empty]])
    losses = session.task.loss(session.fit.model, batch)
    assert float(losses["boxes"]) == 0 and float(losses["classes"]) > 0
    assert batch.weights == {"classes": 0.0, "boxes": 0.0}


def test_tiles_of_a_photograph_are_one_record(tmp_path: Path) -> None:
    """Boxes are counted once over overlapping tiles: a model that finds exactly what each tile shows is right in all."""
    folder = folder_of_shapes(tmp_path / "images", 6, 160, 3)
    given = {"model": {"preset": "yolos-nano", "image_size": 32}, "data": {"train": str(folder), "holdout": "0%"}}
    session = session_of("object-detection", tmp_path / "run", **given, task={"tile": 128})
    task, store = session.task, session.stores["train"]
    found, truth, photos = [], [], []
    for number in range(len(store)):
        example = store[number]
        left, top, right, bottom, width, height = example["place"].tolist()
        boxes = example["boxes"].reshape(-1, 4) * (right - left) / 32 + [left, top] * 2
        torn = ((boxes[:, :2] <= [left, top]) & np.array([left > 0, top > 0])).any(1)
        torn |= ((boxes[:, 2:] >= [right, bottom]) & np.array([right < width, bottom < height])).any(1)
        found.append(Found(boxes, np.full(len(boxes), 0.9), example["numbers"].astype(int), torn))
        truth.append(example["truth"].reshape(-1, 7))
        photos.append(example["photo"])
    records = {"found": apart(found), "truth": apart(truth), "photo": np.concatenate(photos)}
    joined = task.join(records)
    assert len(joined["matched"]) < len(store)
    assert task.metrics(joined)["map_50"] > 0.95
    some = {name: values[[0, 0, 1]] for name, values in joined.items()}
    assert set(task.metrics(some)) == set(task.metric_names)
    assert task.figures(joined)[0]["rows"]
    assert task.pictures(joined, store.__getitem__)[0]["kind"] == "pictures"


def apart(values: list[Any]) -> np.ndarray:
    """Return things as an array with one entry each."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def test_pictures_are_written_with_what_was_found(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    burnish.train(
        "object-detection",
        preset="yolos-nano",
        model={"image_size": 32},
        data={"train": str(shapes)},
        train={"length": "2 steps", "batch": 4},
        task={"threshold": 0.001},
        run={"dir": str(tmp_path / "run")},
        terminal=QUIET,
    )
    with pytest.raises(SystemExit) as left:
        main(
            ["predict", str(tmp_path / "run"), str(shapes / "000.png"), "--pictures", str(tmp_path / "seen"), "--json"]
        )
    assert left.value.code == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Image.open(answer["picture"]).size == (64, 64) and answer["objects"]
    shutil.copytree(shapes, tmp_path / "others")
    asked = [str(shapes / "000.png"), str(tmp_path / "others" / "000.png")]
    pictures = [one["picture"] for one in predict(str(tmp_path / "run"), asked, pictures=str(tmp_path / "both"))]
    assert [Path(one).name for one in pictures] == ["000.png", "000-2.png"] and all(map(os.path.isfile, pictures))
    with pytest.raises(UserError, match=r"--pictures: .*others holds images that are asked about"):
        list(predict(str(tmp_path / "run"), asked, pictures=str(tmp_path / "others")))


def test_a_frozen_backbone_is_computed_once(shapes: Path, tmp_path: Path) -> None:
    """A new detector over a pretrained ViT learns the same with what its backbone gives kept as without."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=64)
    Dinov2Model(small).save_pretrained(str(tmp_path / "vit"))
    make_processor(64).save_pretrained(str(tmp_path / "vit"))
    losses = []
    for cache in ("auto", "off"):
        run = burnish.train(
            "object-detection",
            model={"preset": "conditional-detr-nano", "backbone": str(tmp_path / "vit"), "image_size": 64},
            data={"train": str(shapes)},
            freeze={"pattern": "model.backbone*", "cache": cache, "views": 2},
            augment={"flip": "both"},
            train={"length": "16 steps", "batch": 8, "precision": "fp32"},
            run={"dir": str(tmp_path / cache)},
            terminal=QUIET,
        )
        losses.append([line["loss"] for line in run.history if "loss" in line])
        said = (run.path / "log.txt").read_text()
        assert ("about" in said and "saved" in said) == (cache == "auto")
    assert losses[0] == losses[1]
