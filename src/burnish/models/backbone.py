"""A pretrained backbone inside a new model, such as a detector that is otherwise from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burnish.errors import UserError
from burnish.models.load import Loaded, quiet
from burnish.models.source import make_known, read_config, with_safetensors

#: Detectors whose config names the width and stride of each map that the backbone gives.
_NAMES_MAPS = frozenset({"rt_detr", "rt_detr_v2", "d_fine"})
#: Detectors that read the last map only.
_READS_LAST = frozenset({"detr", "conditional_detr"})


def over_backbone(model_type: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the options of a model's config with the backbone in a folder in place of its own.

    A ViT gives one map, its last layer's; a network of stages gives the last three where the model reads several.

    Raises:
        UserError: the folder's model is no backbone, or this model has none.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    if model_type not in _NAMES_MAPS | _READS_LAST | {"deformable_detr"}:
        raise UserError(
            f"model.backbone: a {model_type} has no backbone apart from itself. Take a DETR or RT-DETR preset."
        )
    values = read_config(folder)
    kind = values.pop("model_type")
    make_known(kind)
    if kind not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise UserError(
            f"model.backbone: transformers has no backbone for a {kind}. Take a DINOv2, ViT, ResNet, Swin or the like."
        )
    config = AutoConfig.for_model(kind, **values)
    plain = isinstance(getattr(config, "patch_size", None), int) and isinstance(
        getattr(config, "hidden_size", None), int
    )
    plain = plain and not hasattr(config, "depths")  # else the stages have other widths
    stages = config.stage_names[-1:] if plain or model_type in _READS_LAST else config.stage_names[-3:]
    inner = {"model_type": kind, **values, "out_features": stages, "out_indices": None}
    options = {**options, "backbone_config": inner}
    if model_type in _NAMES_MAPS and plain:
        width = options.get("encoder_hidden_dim", 256)
        options |= {
            "encoder_in_channels": [config.hidden_size],
            "feat_strides": [config.patch_size],
            "encode_proj_layers": [0],
        }
        options |= {"num_feature_levels": 1, "decoder_in_channels": [width]}
    elif model_type in _NAMES_MAPS:
        options["encoder_in_channels"] = list(config.hidden_sizes)[-3:]
    return options


def backbone_of(model: Any) -> Any:
    """Return the backbone inside a model; None: it has none."""
    from transformers.backbone_utils import BackboneMixin

    return next((module for module in model.modules() if isinstance(module, BackboneMixin)), None)


def load_backbone(model: Any, folder: Path) -> Loaded:
    """Give a model's backbone the weights in a folder, and return what became of them.

    Raises:
        UserError: some are missing or of another shape.
    """
    import torch

    folder, backbone = with_safetensors(folder), backbone_of(model)
    with quiet():
        loaded, info = type(backbone).from_pretrained(
            str(folder),
            config=backbone.config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: the weights do not fit the backbone; missing are {', '.join(missing[:3])}.")
    weights = loaded.state_dict()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    own = {id(value) for value in backbone.state_dict(keep_vars=True).values()}
    new = [name for name, value in model.named_parameters() if id(value) not in own]
    return Loaded(len(own), new, sorted(info["unexpected_keys"]))
