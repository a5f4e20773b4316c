"""The model as it is before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.models.backbone import load_backbone
from burnish.models.load import Loaded, build


def first_model(
    auto_class: str,
    config: Any,
    seed: int,
    source: Path | None,
    backbone: Path | None,
    beginnings: Mapping[int, Sequence[int]],
) -> tuple[Any, Loaded]:
    """Return the model that a run begins with, in float32, and what became of the weights it comes from.

    Args:
        seed: of its new weights.
        source: folder of the pretrained model; None: from scratch.
        backbone: folder of the pretrained backbone inside a model from scratch, if there is one.
        beginnings: see `burnish.models.load.build`.
    """
    import torch

    torch.manual_seed(seed)
    model, loaded = build(auto_class, config, source, beginnings)
    return (model, load_backbone(model, backbone)) if backbone else (model, loaded)
