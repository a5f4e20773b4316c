"""GPT-2 (Radford et al. 2019): the four published sizes, and small ones of the same shape for two CPU cores."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, context, vocabulary, parameters
_SIZES = {
    "gpt2-nano": (4, 4, 128, 256, 2_048, 1_088_256),
    "gpt2-micro": (4, 4, 256, 256, 2_048, 3_749_376),
    "gpt2-mini": (6, 6, 384, 256, 4_096, 12_318_720),
    "gpt2": (12, 12, 768, 1_024, 50_257, 124_439_808),
    "gpt2-medium": (24, 16, 1_024, 1_024, 50_257, 354_823_168),
    "gpt2-large": (36, 20, 1_280, 1_024, 50_257, 774_030_080),
    "gpt2-xl": (48, 25, 1_600, 1_024, 50_257, 1_557_611_200),
}


def gpt2_options(layers: int, heads: int, width: int, context: int, vocabulary: int) -> dict[str, Any]:
    """Return the settings of a GPT-2 config of this size.

    Dropout is 0: with one pass over much data it only slows learning, and without it a step can be cut in any way.
    """
    return {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "n_positions": context,
        "vocab_size": vocabulary,
        # The same tanh approximation as the published "gelu_new", as one fused operation.
        "activation_function": "gelu_pytorch_tanh",
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "summary_first_dropout": 0.0,
    }


class Gpt2(Family):
    """As published, but without dropout."""

    name = "gpt2"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "gpt2",
                gpt2_options(layers, heads, width, context, vocabulary),
                parameters,
                "Radford et al. 2019, Table 2; openai/gpt-2" if width >= 768 else "the same architecture, smaller",
            )
            for name, (layers, heads, width, context, vocabulary, parameters) in _SIZES.items()
        ]

    def shaped(self, layers: int, width: int, context: int, vocabulary: int) -> dict[str, Any]:
        return gpt2_options(layers, width // 64, width, context, vocabulary)
