"""Object detection: one gradient however a step is cut, boxes checked and moved, average precision as COCO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.engine.step import accumulate
from burnish.terminal import Terminal
from helpers import session_of
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
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images of rectangles, some of none."""
    return folder_of_shapes(tmp_path_factory.mktemp("shapes") / "train", 40, 64, 3)


def detector(folder: Path, kind: str) -> Path:
    """Write a small detector of a family, with random weights, as a pretrained folder."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    from burnish.data.processor import make_processor
    from burnish.models.vision import settle

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


def gradient_of(session: Any, micro_batch: int, mean: bool = False) -> torch.Tensor:
    """Return the gradient of the first step, cut into micro-batches; with `mean`, as a mean of their means."""
    job = session.job
    job.loader.micro_batch = micro_batch
    job.weights.forget_gradients()
    batches = job.loader.step(0)
    if mean:
        for batch in batches:
            loss = sum(value / max(1, batch.weights[name]) for name, value in job.task.loss(job.model, batch).items())
            (loss / len(batches)).backward()
    else:
        accumulate(job.model, job.stack, job.task, batches, "cpu", 0)
    return torch.cat([value.grad.flatten() for value in job.weights.trained() if value.grad is not None])


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(kind: str, shapes: Path, tmp_path: Path) -> None:
    session = session_of(
        "object-detection",
        tmp_path / "run",
        model={"path": str(detector(tmp_path / kind, kind))},
        data={"train": str(shapes)},
        train={"batch": 6, "precision": "fp32", "dropout": 0},
    )
    session.join()
    apart = lambda found, wanted: float((found - wanted).norm() / wanted.norm())  # noqa: E731
    wanted = gradient_of(session, 6)
    assert 0 < wanted.norm() < 1e4
    for micro_batch in (2, 1):
        assert apart(gradient_of(session, micro_batch), wanted) <= 1e-5
    assert apart(gradient_of(session, 2, mean=True), wanted) > 1e-2
