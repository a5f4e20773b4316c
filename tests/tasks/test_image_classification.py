"""Images: what the model is shown, how it is varied, and every kind of backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import burnish
from burnish.config import AugmentSettings
from burnish.data.augment import blended, motion, moved, varied
from burnish.data.loader import Loader
from burnish.data.processor import load_processor, resize, shaped
from burnish.engine.step import accumulate
from burnish.errors import UserError
from burnish.models.vision import stretch_positions
from burnish.tasks.images import pixels_of
from burnish.terminal import Terminal
from helpers import apart, session_of

QUIET = Terminal(quiet=True)
RANDOM = np.random.default_rng(0)


def processor(kind: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**settings)


@pytest.mark.parametrize(
    "made",
    [
        processor("ViTImageProcessorPil", size={"height": 32, "width": 32}),
        processor("BitImageProcessorPil", size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        processor("ConvNextImageProcessorPil", size={"shortest_edge": 32}, crop_pct=0.875),
        processor("SegformerImageProcessorPil", size={"height": 32, "width": 32}),
    ],
    ids=lambda made: type(made).__name__,
)
def test_the_model_is_shown_what_transformers_would_show_it(made: Any, shapes_folder: Path, tmp_path: Path) -> None:
    """Also through a run's folder; images of another size than the model's, which are not square."""
    folder = tmp_path / "images"
    for number in range(8):
        label = folder / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (50, 70, 3), np.uint8)).save(label / f"{number}.png")
    made.save_pretrained(tmp_path / "model")
    given = toy(folder, 32)
    given["data"]["holdout"] = "0%"
    session = session_of("image-classification", tmp_path / "run", **given)
    session.task.tokenizer = load_processor(tmp_path / "model")
    pixels = np.asarray(Image.open(folder / "a" / "0.png"))
    ours = shaped(session.task.processor, pixels)
    found = session.task.images([{"pixels": ours.reshape(-1), "shape": np.array(ours.shape[:2])}])
    wanted = made(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.allclose(found, wanted.float(), atol=1e-5)


def toy(folder: Path, size: int = 16, **train: Any) -> dict[str, Any]:
    return {
        "model": {"preset": "vit-nano", "image_size": size},
        "data": {"train": str(folder)},
        "train": {"length": "4 steps", "batch": 6, "precision": "fp32", **train},
    }


def test_another_size_keeps_the_rule_of_the_processor() -> None:
    made = processor("BitImageProcessorPil", size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    resize(made, 112)
    assert made.size["shortest_edge"] == 128 and made.crop_size["height"] == made.crop_size["width"] == 112


# -- augmentation ------------------------------------------------------------------------------------------------


def test_pixels_move_as_the_matrix_says() -> None:
    """Every setting that moves: a bright pixel is found where `motion` puts it."""
    settings = AugmentSettings(flip="both", crop=0.6, shift=0.1, rotate=40)
    for draw in range(30):
        image = torch.zeros(1, 1, 33, 41)
        image[0, 0, 14:19, 18:23] = 1.0
        matrix = motion(settings, draw, 33, 41)
        x, y, _ = matrix @ [20, 16, 1]
        after = moved(image, [matrix])[0, 0]
        if 6 <= x <= 34 and 6 <= y <= 26:
            rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(41.0), indexing="ij")
            assert float((after * columns).sum() / after.sum()) == pytest.approx(x, abs=0.1)
            assert float((after * rows).sum() / after.sum()) == pytest.approx(y, abs=0.1)


def test_a_mirrored_image_is_exact() -> None:
    image = torch.from_numpy(RANDOM.random((1, 3, 9, 12), np.float32))
    settings = AugmentSettings(flip="horizontal")
    found = [varied(settings, image, [draw]) for draw in range(20)]
    mirrored = [bool((one - image.flip(3)).abs().max() < 1e-5) for one in found]
    same = [bool((one - image).abs().max() < 1e-5) for one in found]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 3 < sum(mirrored) < 17


def test_what_becomes_of_an_image_follows_from_its_own_bits() -> None:
    settings = AugmentSettings(flip="both", crop=0.5, shift=0.1, rotate=20, color=0.4, erase=0.5)
    images = torch.from_numpy(RANDOM.random((4, 3, 16, 16), np.float32))
    together = varied(settings, images, [5, 6, 2**63 + 7, 8])
    alone = varied(settings, images[2:3], [2**63 + 7])
    assert torch.allclose(together[2:3], alone, atol=1e-6)
    assert not torch.allclose(together[2:3], varied(settings, images[2:3], [9]), atol=1e-2)


def test_blends_count_both_by_their_share() -> None:
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    for settings in (AugmentSettings(mixup=1), AugmentSettings(cutmix=1), AugmentSettings(mixup=1, cutmix=1)):
        for draw in range(20):
            pixels, share = blended(settings, black, white, draw)
            assert 1 - pixels.mean() / 255 == pytest.approx(share, abs=0.003), settings


@pytest.mark.parametrize(
    "augment", [{"flip": "both", "rotate": 30, "color": 0.3}, {"cutmix": 1.0, "shift": 0.2}], ids=["moved", "blended"]
)
def test_a_varied_step_is_the_same_however_it_is_cut(
    augment: dict[str, Any], shapes_folder: Path, tmp_path: Path
) -> None:
    wanted = None
    for micro_batch in (6, 4, 1):
        given = {**toy(shapes_folder, micro_batch=micro_batch), "augment": augment}
        session = session_of("image-classification", tmp_path / "run", **given)
        session.join()
        job = session.job
        job.weights.forget_gradients()
        accumulate(job.model, job.stack, job.task, job.loader.step(1), "cpu", 0)
        found = {name: value.grad.clone() for name, value in job.model.named_parameters() if value.grad is not None}
        wanted = wanted or found
        assert apart(found, wanted) <= 1e-5


def test_partners_within_a_micro_batch_would_depend_on_the_cut(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong way, to show that the test above would find it."""
    right = Loader._varied

    def wrong(self: Loader, rows: Any, places: Any) -> Any:
        inner = [rows[place] for place in places]
        return right(self, inner, range(len(inner)))

    monkeypatch.setattr(Loader, "_varied", wrong)
    with pytest.raises(AssertionError):
        test_a_varied_step_is_the_same_however_it_is_cut({"cutmix": 1.0}, shapes_folder, tmp_path)


def test_evaluation_sees_images_as_they_are(shapes_folder: Path, tmp_path: Path) -> None:
    given = {**toy(shapes_folder), "augment": {"flip": "both", "erase": 1.0}}
    session = session_of("image-classification", tmp_path / "run", **given)
    example = session.stores["validation"][0]
    plain = session.task.images([example])
    wanted = torch.from_numpy(pixels_of(example).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.allclose(plain, wanted, atol=1e-5)


# -- models ------------------------------------------------------------------------------------------------------


def backbones() -> dict[str, Any]:
    """A tiny one of each kind, as its config."""
    import transformers as t

    small = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    return {
        "vit": t.ViTConfig(**small, image_size=32, patch_size=8),
        "dinov2": t.Dinov2Config(**small, image_size=48, patch_size=8),
        "swin": t.SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4),
        "convnext": t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        "resnet": t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        "segformer": t.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
            strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "convnext", "resnet", "segformer"])
def test_any_backbone_is_fine_tuned(kind: str, shapes_folder: Path, tmp_path: Path) -> None:
    """Trains in bf16 too, resumes nothing here; what is exported opens in plain transformers with the same answer."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path / kind
    transformers.AutoModel.from_config(backbones()[kind]).save_pretrained(folder)
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(folder)
    given = {
        "model": {"path": str(folder)},
        "data": {"train": str(shapes_folder)},
        "train": {"length": "6 steps", "batch": 8, "micro_batch": 3, "dropout": 0},
        "optim": {"lr": 1e-3},
    }
    run = burnish.train("image-classification", terminal=QUIET, run={"dir": str(tmp_path / "run")}, **given)
    plan = run.folder.read_json(run.folder.plan)
    assert plan["arrangement"] == ("packed" if kind in ("vit", "dinov2") else "padded")
    picture = sorted(shapes_folder.rglob("*.png"))[0]
    model = transformers.AutoModelForImageClassification.from_pretrained(run.folder.model).eval()
    made = transformers.AutoImageProcessor.from_pretrained(run.folder.model, backend="pil")
    with torch.inference_mode():
        logits = model(**made(Image.open(picture), return_tensors="pt")).logits[0]
    said = run.predict(str(picture))
    tolerance = 1e-4 if plan["precision"] == "fp32" else 0.02
    assert said["scores"][model.config.id2label[0]] == pytest.approx(float(logits.softmax(0)[0]), abs=tolerance)
    assert run.predict(np.asarray(Image.open(picture)))["scores"] == said["scores"]


def test_batch_norm_keeps_its_statistics(shapes_folder: Path, tmp_path: Path) -> None:
    """Rows would depend on each other else: the gradient of a step is the same however it is cut."""
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(backbones()["resnet"]).save_pretrained(tmp_path / "resnet")
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    wanted = None
    for micro_batch in (6, 2, 1):
        given = {**toy(shapes_folder, micro_batch=micro_batch), "model": {"path": str(tmp_path / "resnet")}}
        session = session_of("image-classification", tmp_path / "run", **given)
        session.join()
        before = {name: value.clone() for name, value in session.job.model.named_buffers()}
        session.job.weights.forget_gradients()
        accumulate(session.job.model, None, session.job.task, session.job.loader.step(0), "cpu", 0)
        parameters = dict(session.job.model.named_parameters())
        found = {name: value.grad.clone() for name, value in parameters.items() if value.grad is not None}
        wanted = wanted or found
        assert apart(found, wanted) <= 1e-5
        assert all(torch.equal(before[name], value) for name, value in session.job.model.named_buffers())
        assert any("normalization.weight" in name for name in found), "its own weights train"


def test_batch_norm_of_fixed_groups_of_rows(shapes_folder: Path, tmp_path: Path) -> None:
    """Groups are the recipe's: gradient and statistics are the same however a step of two groups is cut; others differ."""
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(backbones()["resnet"]).save_pretrained(tmp_path / "resnet")
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")

    def stepped(norm_rows: int, micro_batch: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        given = {**toy(shapes_folder, micro_batch=micro_batch), "model": {"path": str(tmp_path / "resnet")}}
        given["train"] |= {"norm_rows": norm_rows}
        session = session_of("image-classification", tmp_path / "run", **given)
        session.join()
        session.job.weights.forget_gradients()
        accumulate(session.job.model, None, session.job.task, session.job.loader.step(0), "cpu", 0)
        session.job.weights.learn_statistics()
        parameters = session.job.model.named_parameters()
        gradient = {name: value.grad.clone() for name, value in parameters if value.grad is not None}
        return gradient, {n: v.clone() for n, v in session.job.model.named_buffers() if "running" in n}

    gradient, statistics = stepped(norm_rows=3, micro_batch=6)
    cut, learned = stepped(norm_rows=3, micro_batch=3)
    assert apart(cut, gradient) <= 1e-5 and apart(learned, statistics) <= 1e-6
    assert apart(stepped(norm_rows=6, micro_batch=6)[0], gradient) > 1e-2
    with pytest.raises(UserError, match=r"train\.micro_batch: 2 is no multiple of train\.norm_rows, 3"):
        stepped(norm_rows=3, micro_batch=2)


def test_frozen_layers_are_replayed_to_the_bit(shapes_folder: Path, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(backbones()["dinov2"]).save_pretrained(tmp_path / "dinov2")
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dinov2")
    logs = []
    for layers, cache in (("all", "auto"), ("all", "off"), (2, "auto"), (2, "off")):
        given = {**toy(shapes_folder, length="2 epochs"), "model": {"path": str(tmp_path / "dinov2")}}
        run = burnish.train(
            "image-classification",
            terminal=QUIET,
            freeze={"layers": layers, "cache": cache},
            run={"dir": str(tmp_path / f"{layers}-{cache}")},
            **given,
        )
        logs.append([line["loss"] for line in run.history if "loss" in line])
    assert logs[0] == logs[1] and logs[2] == logs[3] and logs[0] != logs[2]


def test_positions_are_stretched_for_another_size(shapes_folder: Path, tmp_path: Path) -> None:
    """A table is interpolated as a picture, the class token's position stays; the backbone is loaded but for the table."""
    import transformers

    torch.manual_seed(0)
    small = transformers.ViTModel(backbones()["vit"])
    torch.nn.init.normal_(small.embeddings.position_embeddings)
    small.save_pretrained(tmp_path / "vit")
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    given = {**toy(shapes_folder), "model": {"path": str(tmp_path / "vit"), "image_size": 48}}
    session = session_of("image-classification", tmp_path / "run", **given)
    before, after = small.embeddings.position_embeddings, session.fit.model.vit.embeddings.position_embeddings
    assert after.shape == (1, 37, 24) and torch.equal(after[:, :1], before[:, :1])
    grid = before[0, 1:].reshape(4, 4, 24).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    assert torch.allclose(after[0, 1:].reshape(6, 6, 24).permute(2, 0, 1)[None], wanted, atol=1e-6)
    assert session.fit.model.config.image_size == 48
    assert all("classifier" in name for name in session.loaded.new)
    assert stretch_positions({}, session.fit.model) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": {"sequence": 64}}, "train.sequence: images have as many positions as their size gives"),
        (
            {"model": {"preset": "gpt2-nano"}},
            "model.preset: gpt2-nano reads text, and image-classification is about images",
        ),
        ({"model": {"preset": "vit-nano", "vocab_size": 300}}, "model.vocab_size: image-classification reads images"),
    ],
    ids=["sequence", "text preset", "vocabulary"],
)
def test_settings_that_are_not_about_images_are_refused(
    settings: dict[str, Any], reason: str, shapes_folder: Path
) -> None:
    given = {"model": {"preset": "vit-nano", "image_size": 16}, "data": {"train": str(shapes_folder)}, **settings}
    with pytest.raises(UserError, match=reason):
        burnish.train("image-classification", dry_run=True, terminal=QUIET, **given)


def test_a_model_of_text_sees_nothing(tiny_bert: Path, shapes_folder: Path) -> None:
    with pytest.raises(UserError, match="holds no image processor"):
        burnish.train(
            "image-classification",
            dry_run=True,
            terminal=QUIET,
            model={"path": str(tiny_bert)},
            data={"train": str(shapes_folder)},
        )


def test_several_labels_and_numbers_are_judged_too(tmp_path: Path) -> None:
    import json

    from helpers import bars

    bars(tmp_path / "bars", 20)
    files = sorted((tmp_path / "bars").rglob("*.png"))
    for kind, label in (
        ("multi", lambda n: ["even"] * (n % 2 == 0) + ["third"] * (n % 3 == 0)),
        ("regression", lambda n: n / 7),
    ):
        rows = [{"image": str(file), "label": label(number)} for number, file in enumerate(files)]
        data = tmp_path / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {**toy(tmp_path), "data": {"train": str(data)}}
        run = burnish.train("image-classification", terminal=QUIET, run={"dir": str(tmp_path / kind)}, **given)
        answer = run.predict(str(files[0]))
        assert ("labels" in answer) if kind == "multi" else ("value" in answer)


def test_views_of_varied_images_are_replayed_to_the_bit(shapes_folder: Path, tmp_path: Path) -> None:
    """Two views, four epochs: stored or computed the same; the third epoch sees what the first saw."""
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(backbones()["dinov2"]).save_pretrained(tmp_path / "dinov2")
    processor("ViTImageProcessorPil", size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dinov2")
    logs, said = [], []
    for cache, views in (("auto", 2), ("off", 2), ("auto", 0)):
        run = burnish.train(
            "image-classification",
            terminal=QUIET,
            freeze={"layers": "all", "cache": cache, "views": views},
            augment={"flip": "both", "shift": 0.2},
            run={"dir": str(tmp_path / f"{cache}-{views}")},
            **{**toy(shapes_folder, length="4 epochs"), "model": {"path": str(tmp_path / "dinov2")}},
        )
        logs.append([line["loss"] for line in run.history if "loss" in line])
        said.append(run.folder.text_log.read_text())
    assert logs[0] == logs[1] and logs[0] != logs[2]
    assert "stored in" in said[0] and "; --freeze.views keeps some" in said[2]
