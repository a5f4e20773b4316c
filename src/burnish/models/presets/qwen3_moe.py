"""Qwen3's mixtures of experts (Yang et al. 2025): the two published sizes, and smaller ones for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, heads of keys, width, width of a head, experts, chosen, inner width of one, vocabulary, parameters
_SIZES = {
    "qwen3-moe-nano": (4, 4, 2, 128, 32, 8, 2, 128, 2_048, 2_037_120),
    "qwen3-moe-micro": (4, 4, 2, 256, 64, 16, 4, 192, 4_096, 11_291_392),
    "qwen3-30b-a3b": (48, 32, 4, 2_048, 128, 128, 8, 768, 151_936, 30_532_122_624),
    "qwen3-235b-a22b": (94, 64, 4, 4_096, 128, 128, 8, 1_536, 151_936, 235_093_634_560),
}


class Qwen3Moe(Family):
    """As Qwen3, but each layer's inner part is several, of which a router chooses some for each token."""

    name = "qwen3-moe"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "qwen3_moe",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": key_heads,
                    "hidden_size": width,
                    "head_dim": head_width,
                    "num_experts": experts,
                    "num_experts_per_tok": chosen,
                    "moe_intermediate_size": inner,
                    "norm_topk_prob": True,
                    "router_aux_loss_coef": 0.001,
                    "vocab_size": vocabulary,
                    "tie_word_embeddings": vocabulary != 151_936,
                    "max_position_embeddings": 32_768 if vocabulary == 151_936 else 1_024,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
                },
                parameters,
                "Yang et al. 2025, Table 2" if vocabulary == 151_936 else "the same architecture, smaller",
            )
            for name, (
                layers,
                heads,
                key_heads,
                width,
                head_width,
                experts,
                chosen,
                inner,
                vocabulary,
                parameters,
            ) in _SIZES.items()
        ]
