"""ResNet (He et al. 2016): convolutions and batch norms."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: kind and number of blocks, parameters of the backbone
_SIZES = {
    "resnet-18": ("basic", [2, 2, 2, 2], 11_176_512),
    "resnet-34": ("basic", [3, 4, 6, 3], 21_284_672),
    "resnet-50": ("bottleneck", [3, 4, 6, 3], 23_508_032),
    "resnet-101": ("bottleneck", [3, 4, 23, 3], 42_500_160),
    "resnet-152": ("bottleneck", [3, 8, 36, 3], 58_143_808),
}


class ResNet(Family):
    """Stages of 64 to 512 channels, four times as many outside a bottleneck."""

    name = "resnet"

    def presets(self) -> list[Preset]:
        outside = {"basic": 64, "bottleneck": 256}
        return [
            Preset(
                name,
                "resnet",
                {
                    "layer_type": kind,
                    "depths": depths,
                    "hidden_sizes": [outside[kind] * 2**stage for stage in range(4)],
                    "image_size": 224,
                },
                parameters,
                "He et al. 2016, Table 1",
                "AutoModel",
            )
            for name, (kind, depths, parameters) in _SIZES.items()
        ]
