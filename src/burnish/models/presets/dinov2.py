"""DINOv2's ViT (Oquab et al. 2024): patches of 14 pixels, and each layer's sum scaled."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, parameters of the backbone for images of 224 pixels
_SIZES = {
    "dinov2-small": (12, 6, 384, 21_629_184),
    "dinov2-base": (12, 12, 768, 85_725_696),
    "dinov2-large": (24, 16, 1_024, 303_228_928),
}


class Dinov2(Family):
    """Its published weights saw 518 pixels in the end; from scratch it begins at 224, as their training did."""

    name = "dinov2"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "dinov2",
                {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width, "image_size": 224},
                parameters,
                "Oquab et al. 2024, Table 17",
                "AutoModel",
            )
            for name, (layers, heads, width, parameters) in _SIZES.items()
        ]
