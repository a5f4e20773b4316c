"""ConvNeXt (Liu et al. 2022): convolutions arranged as in a Swin."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: blocks of the third stage, channels of the first, parameters of the backbone
_SIZES = {
    "convnext-tiny": (9, 96, 27_820_128),
    "convnext-small": (27, 96, 49_454_688),
    "convnext-base": (27, 128, 87_566_464),
    "convnext-large": (27, 192, 196_230_336),
}


class ConvNext(Family):
    """Four stages, each twice as wide as the one before; no layers are left out at random."""

    name = "convnext"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "convnext",
                {
                    "depths": [3, 3, blocks, 3],
                    "hidden_sizes": [width * 2**stage for stage in range(4)],
                    "drop_path_rate": 0.0,
                    "image_size": 224,
                },
                parameters,
                "Liu et al. 2022, section 3",
                "AutoModel",
            )
            for name, (blocks, width, parameters) in _SIZES.items()
        ]
