"""Swin (Liu et al. 2021): attention within windows that shift from layer to layer."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers of the third stage, width of the first, parameters of the backbone
_SIZES = {
    "swin-tiny": (6, 96, 27_519_354),
    "swin-small": (18, 96, 48_837_258),
    "swin-base": (18, 128, 86_743_224),
    "swin-large": (18, 192, 194_995_476),
}


class Swin(Family):
    """Windows of 7 x 7 patches, heads of 32, four stages, each twice as wide; no layers are left out at random."""

    name = "swin"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "swin",
                {
                    "embed_dim": width,
                    "depths": [2, 2, layers, 2],
                    "num_heads": [width // 32 * 2**stage for stage in range(4)],
                    "drop_path_rate": 0.0,
                    "image_size": 224,
                },
                parameters,
                "Liu et al. 2021, section 3.3",
                "AutoModel",
            )
            for name, (layers, width, parameters) in _SIZES.items()
        ]
