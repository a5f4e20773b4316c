"""Mask2Former (Cheng et al. 2022) over a Swin (Liu et al. 2021), and a smaller one for two CPU cores."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

#: name: width and blocks of each stage of its Swin, heads of the first one, side of a window, queries, parameters
_SIZES = {
    "mask2former-swin-t": (96, (2, 2, 6, 2), 3, 7, 100, 47_423_179),
    "mask2former-swin-s": (96, (2, 2, 18, 2), 3, 7, 100, 68_741_083),
    "mask2former-swin-b": (128, (2, 2, 18, 2), 4, 12, 100, 106_906_249),
    "mask2former-swin-l": (192, (2, 2, 18, 2), 6, 12, 200, 215_525_061),
}
_NANO: dict[str, Any] = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 128,
    "dim_feedforward": 128,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "num_queries": 50,
}


class Mask2Former(Family):
    """Queries that look at the part of the image where their own mask is; no dropout."""

    name = "mask2former"

    def presets(self) -> list[Preset]:
        made = [
            _preset(
                "mask2former-nano", 128, _swin(24, (1, 1, 1, 1), 2, 4), _NANO, 968_895, "the same architecture, smaller"
            )
        ]
        for name, (width, depths, heads, window, queries, parameters) in _SIZES.items():
            options = {"num_queries": queries}
            made.append(
                _preset(
                    name, 1024, _swin(width, depths, heads, window), options, parameters, "Cheng et al. 2022, Table 1"
                )
            )
        return made


def _swin(width: int, depths: tuple[int, ...], heads: int, window: int) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": [heads, 2 * heads, 4 * heads, 8 * heads],
        "window_size": window,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _preset(
    name: str, size: int, backbone: dict[str, Any], options: dict[str, Any], parameters: int, source: str
) -> Preset:
    options = {"image_size": size, "backbone_config": {**backbone, "image_size": size}, "num_labels": 80, **options}
    return Preset(name, "mask2former", options, parameters, source, "AutoModelForUniversalSegmentation")
