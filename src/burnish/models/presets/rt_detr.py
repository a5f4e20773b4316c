"""RT-DETR (Zhao et al. 2024) and D-FINE (Peng et al. 2024): the best places of the image's map become queries."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

#: name: kind and number of blocks of its ResNet, layers of its decoder, width of its encoder, parameters
_SIZES = {
    "rt-detr-r18": ("basic", [2, 2, 2, 2], 3, 256, 20_073_688),
    "rt-detr-r34": ("basic", [3, 4, 6, 3], 4, 256, 31_303_422),
    "rt-detr-r50": ("bottleneck", [3, 4, 6, 3], 6, 256, 42_730_314),
    "rt-detr-r101": ("bottleneck", [3, 4, 23, 3], 6, 384, 76_395_210),
}
_NANO: dict[str, Any] = {
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "layer_type": "basic",
        "embedding_size": 32,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [32, 48, 64, 96],
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [48, 64, 96],
    "decoder_in_channels": [128, 128, 128],
    "encoder_hidden_dim": 128,
    "d_model": 128,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "hidden_expansion": 0.5,
    "decoder_layers": 3,
    "num_queries": 100,
}


class RtDetr(Family):
    """An encoder over maps of three sizes, whose likeliest places the decoder refines; no dropout, no noised queries."""

    name = "rt_detr"

    def presets(self) -> list[Preset]:
        made = [_preset("rt-detr-nano", "rt_detr", 224, _NANO, 2_212_984, "the same architecture, smaller")]
        made += [
            _preset(
                name, "rt_detr", 640, _options(layer, depths, decoder, width), parameters, "Zhao et al. 2024, Table 2"
            )
            for name, (layer, depths, decoder, width, parameters) in _SIZES.items()
        ]
        return [*made, _preset("d-fine-l", "d_fine", 640, {}, 31_083_094, "Peng et al. 2024, Table 1")]


def _options(layer: str, depths: list[int], decoder: int, width: int) -> dict[str, Any]:
    widths = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    resnet = {"model_type": "rt_detr_resnet", "layer_type": layer, "depths": depths, "hidden_sizes": widths}
    return {
        "backbone_config": {**resnet, "out_features": ["stage2", "stage3", "stage4"]},
        "encoder_in_channels": widths[1:],
        "encoder_hidden_dim": width,
        "decoder_in_channels": [width] * 3,
        "encoder_ffn_dim": 1024 if width == 256 else 2048,
        "hidden_expansion": 0.5 if layer == "basic" else 1.0,
        "decoder_layers": decoder,
    }


def _preset(name: str, kind: str, size: int, options: dict[str, Any], parameters: int, source: str) -> Preset:
    plain = {"image_size": size, "num_denoising": 0}
    return Preset(name, kind, {**plain, **options}, parameters, source, "AutoModelForObjectDetection")
