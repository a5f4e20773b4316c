"""Llama 3 (Grattafiori et al. 2024; 1B and 3B: Meta's 3.2 release), and smaller ones of its shape for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, heads of keys, width, inner width, vocabulary, one matrix for both ends, parameters
_SIZES = {
    "llama3-nano": (4, 4, 2, 128, 384, 2_048, True, 1_049_728),
    "llama3-micro": (4, 4, 2, 256, 768, 4_096, True, 4_196_608),
    "llama3-1b": (16, 32, 8, 2_048, 8_192, 128_256, True, 1_235_814_400),
    "llama3-3b": (28, 24, 8, 3_072, 8_192, 128_256, True, 3_212_749_824),
    "llama3-8b": (32, 32, 8, 4_096, 14_336, 128_256, False, 8_030_261_248),
    "llama3-70b": (80, 64, 8, 8_192, 28_672, 128_256, False, 70_553_706_496),
    "llama3-405b": (126, 128, 8, 16_384, 53_248, 128_256, False, 405_853_388_800),
}


class Llama3(Family):
    """Grouped heads, gated inner layers, rotary positions with base 500,000."""

    name = "llama3"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "llama",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": key_heads,
                    "hidden_size": width,
                    "intermediate_size": inner,
                    "vocab_size": vocabulary,
                    "tie_word_embeddings": tied,
                    "max_position_embeddings": 8_192 if vocabulary == 128_256 else 1_024,
                    "rms_norm_eps": 1e-5,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
                },
                parameters,
                "Grattafiori et al. 2024, Table 3" if vocabulary == 128_256 else "the same architecture, smaller",
            )
            for name, (layers, heads, key_heads, width, inner, vocabulary, tied, parameters) in _SIZES.items()
        ]
