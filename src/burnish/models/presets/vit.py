"""ViT (Dosovitskiy et al. 2021; the small sizes: Touvron et al. 2021), and smaller ones for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, image size, patch size, parameters of the backbone with its pooler
_SIZES = {
    "vit-nano": (4, 3, 96, 32, 4, 467_904),
    "vit-micro": (6, 4, 192, 64, 8, 2_756_352),
    "vit-tiny": (12, 3, 192, 224, 16, 5_561_472),
    "vit-small": (12, 6, 384, 224, 16, 21_813_504),
    "vit-base": (12, 12, 768, 224, 16, 86_389_248),
    "vit-large": (24, 16, 1_024, 224, 16, 304_351_232),
    "vit-huge": (32, 16, 1_280, 224, 14, 632_404_480),
}


class Vit(Family):
    """Four times as wide inside as outside, no dropout; squares of pixels are its tokens."""

    name = "vit"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "vit",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "hidden_size": width,
                    "intermediate_size": 4 * width,
                    "image_size": size,
                    "patch_size": patch,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                    "initializer_range": 0.02 if size == 224 else width**-0.5,
                },
                parameters,
                _source(name),
                "AutoModel",
            )
            for name, (layers, heads, width, size, patch, parameters) in _SIZES.items()
        ]


def _source(name: str) -> str:
    if name in ("vit-nano", "vit-micro"):
        return "the same architecture, smaller"
    return "Touvron et al. 2021, Table 1" if name in ("vit-tiny", "vit-small") else "Dosovitskiy et al. 2021, Table 1"
