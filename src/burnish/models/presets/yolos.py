"""YOLOS (Fang et al. 2021): a plain ViT whose last tokens find objects; and a smaller one for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, image size, patch size, objects it can find, parameters as transformers builds it
_SIZES = {
    "yolos-nano": (4, 3, 96, 64, 8, 20, 514_183),
    "yolos-tiny": (12, 3, 192, 512, 16, 100, 5_871_367),
    "yolos-small": (12, 6, 384, 512, 16, 100, 27_406_471),
    "yolos-base": (12, 12, 768, 512, 16, 100, 98_459_911),
}


class Yolos(Family):
    """Squares of pixels are its tokens, and beside them one for each object that it may find; no dropout."""

    name = "yolos"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "yolos",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "hidden_size": width,
                    "intermediate_size": 4 * width,
                    "image_size": [size, size],
                    "patch_size": patch,
                    "num_detection_tokens": objects,
                    "use_mid_position_embeddings": width >= 384,
                    "initializer_range": 0.02 if size == 512 else width**-0.5,
                },
                parameters,
                "the same architecture, smaller" if name == "yolos-nano" else "Fang et al. 2021, Table 1",
                "AutoModelForObjectDetection",
            )
            for name, (layers, heads, width, size, patch, objects, parameters) in _SIZES.items()
        ]
