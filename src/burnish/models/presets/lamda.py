"""LaMDA (Thoppilan et al. 2022): the three published sizes, and smaller ones for two CPU cores.

The paper counts parameters without the embeddings: 2.1, 8.6 and 137.4 billion of these are in the layers.
"""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, width of a head, inner width, vocabulary, parameters
_SIZES = {
    "lamda-nano": (4, 4, 128, 32, 256, 2_048, 918_784),
    "lamda-micro": (4, 4, 256, 64, 512, 4_096, 3_672_448),
    "lamda-2b": (10, 40, 2_560, 128, 20_480, 32_000, 2_179_127_040),
    "lamda-8b": (16, 64, 4_096, 128, 32_768, 32_000, 8_721_143_808),
    "lamda-137b": (64, 128, 8_192, 128, 65_536, 32_000, 137_702_158_336),
}


class Lamda(Family):
    """Relative positions, gated inner layers, one matrix for both ends. Opens with plain transformers after
    `import burnish.models.own`."""

    name = "lamda"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "lamda",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "hidden_size": width,
                    "head_dim": head_width,
                    "intermediate_size": inner,
                    "vocab_size": vocabulary,
                },
                parameters,
                "Thoppilan et al. 2022, section 3 and appendix"
                if vocabulary == 32_000
                else "the same architecture, smaller",
            )
            for name, (layers, heads, width, head_width, inner, vocabulary, parameters) in _SIZES.items()
        ]
