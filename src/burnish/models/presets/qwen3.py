"""Qwen3 (Yang et al. 2025): the dense sizes, and smaller ones of their shape for two CPU cores."""

from __future__ import annotations

from typing import Any

from burnish.models.scratch import Family, Preset

#: name: layers, heads, heads of keys, width, width of a head, inner width, vocabulary, one matrix for both ends, parameters
_SIZES: dict[str, tuple[Any, ...]] = {
    "qwen3-nano": (4, 4, 2, 128, 32, 384, 2_048, True, 1_049_984),
    "qwen3-micro": (4, 4, 2, 256, 64, 768, 4_096, True, 4_197_120),
    "qwen3-0.6b": (28, 16, 8, 1_024, 128, 3_072, 151_936, True, 596_049_920),
    "qwen3-1.7b": (28, 16, 8, 2_048, 128, 6_144, 151_936, True, 1_720_574_976),
    "qwen3-4b": (36, 32, 8, 2_560, 128, 9_728, 151_936, True, 4_022_468_096),
    "qwen3-8b": (36, 32, 8, 4_096, 128, 12_288, 151_936, False, 8_190_735_360),
    "qwen3-14b": (40, 40, 8, 5_120, 128, 17_408, 151_936, False, 14_768_307_200),
    "qwen3-32b": (64, 64, 8, 5_120, 128, 25_600, 151_936, False, 32_762_123_264),
}


def qwen3_options(
    layers: int,
    heads: int,
    key_heads: int,
    width: int,
    head_width: int,
    inner: int,
    vocabulary: int,
    tied: bool,
    context: int,
) -> dict[str, Any]:
    """Return the settings of a Qwen3 config of this size."""
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "hidden_size": width,
        "head_dim": head_width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }


class Qwen3(Family):
    """Grouped heads with normed queries and keys, gated inner layers, rotary positions with base 1,000,000."""

    name = "qwen3"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "qwen3",
                qwen3_options(*shape, context=32_768 if shape[6] == 151_936 else 1_024),
                parameters,
                "Yang et al. 2025, Table 1" if shape[6] == 151_936 else "the same architecture, smaller",
            )
            for name, (*shape, parameters) in _SIZES.items()
        ]

    def shaped(self, layers: int, width: int, context: int, vocabulary: int) -> dict[str, Any]:
        heads = width // 64  # two share keys: 3 width^2 of attention, and 9 of inner layers three times as wide
        key_heads = heads // 2 if heads % 2 == 0 else heads
        return qwen3_options(layers, heads, key_heads, width, 64, 3 * width, vocabulary, True, context)
