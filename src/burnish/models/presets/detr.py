"""DETR, Conditional DETR and Deformable DETR over a ResNet-50, and Conditional DETR smaller, for another backbone."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

_RESNET: dict[str, Any] = {"model_type": "resnet", "out_features": ["stage4"]}
_PLAIN: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "auxiliary_loss": True}
#: Six layers each of encoder and decoder; the smaller one has fewer, narrower ones, over a ResNet of basic blocks.
_SMALL: dict[str, Any] = {
    "backbone_config": {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [1, 1, 1, 1],
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 96, 128],
        "out_features": ["stage4"],
    },
    "d_model": 128,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 60,
}


class Detr(Family):
    """Queries that attend to a map of the image find its objects; no dropout."""

    name = "detr"

    def presets(self) -> list[Preset]:
        deformable = {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}
        over_resnet, over_levels = {"backbone_config": _RESNET}, {"backbone_config": deformable}
        meng, zhu, carion = "Meng et al. 2021, Table 1", "Zhu et al. 2021, Table 1", "Carion et al. 2020, Table 1"
        sizes = [
            ("conditional-detr-nano", "conditional_detr", 224, _SMALL, 1_809_896, "the same architecture, smaller"),
            ("deformable-detr-resnet-50", "deformable_detr", 800, over_levels, 40_046_792, zhu),
            ("detr-resnet-50", "detr", 800, over_resnet, 41_501_895, carion),
            ("conditional-detr-resnet-50", "conditional_detr", 800, over_resnet, 43_395_528, meng),
        ]
        return [
            Preset(
                name,
                kind,
                {"image_size": size, **_PLAIN, **options},
                parameters,
                source,
                "AutoModelForObjectDetection",
            )
            for name, kind, size, options, parameters, source in sizes
        ]
