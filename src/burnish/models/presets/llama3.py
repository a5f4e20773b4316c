"""Llama 3 (Grattafiori et al. 2024; 1B and 3B: Meta's 3.2 release), and smaller ones of its shape for two CPU cores."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

#: name: layers, heads, heads of keys, width, inner width, vocabulary, one matrix for both ends, parameters
_SIZES: dict[str, tuple[Any, ...]] = {
    "llama3-nano": (4, 4, 2, 128, 384, 2_048, True, 1_049_728),
    "llama3-micro": (4, 4, 2, 256, 768, 4_096, True, 4_196_608),
    "llama3-1b": (16, 32, 8, 2_048, 8_192, 128_256, True, 1_235_814_400),
    "llama3-3b": (28, 24, 8, 3_072, 8_192, 128_256, True, 3_212_749_824),
    "llama3-8b": (32, 32, 8, 4_096, 14_336, 128_256, False, 8_030_261_248),
    "llama3-70b": (80, 64, 8, 8_192, 28_672, 128_256, False, 70_553_706_496),
    "llama3-405b": (126, 128, 8, 16_384, 53_248, 128_256, False, 405_853_388_800),
}


def llama3_options(
    layers: int, heads: int, key_heads: int, width: int, inner: int, vocabulary: int, tied: bool, context: int
) -> dict[str, Any]:
    """Return the settings of a Llama config of this size."""
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "hidden_size": width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    }


class Llama3(Family):
    """Grouped heads, gated inner layers, rotary positions with base 500,000."""

    name = "llama3"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "llama",
                llama3_options(*shape, context=8_192 if shape[5] == 128_256 else 1_024),
                parameters,
                "Grattafiori et al. 2024, Table 3" if shape[5] == 128_256 else "the same architecture, smaller",
            )
            for name, (*shape, parameters) in _SIZES.items()
        ]

    def shaped(self, layers: int, width: int, context: int, vocabulary: int) -> dict[str, Any]:
        heads = width // 64  # two share keys: 3 width^2 of attention, and 9 of inner layers three times as wide
        key_heads = heads // 2 if heads % 2 == 0 else heads
        return llama3_options(layers, heads, key_heads, width, 3 * width, vocabulary, True, context)
