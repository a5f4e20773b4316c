"""The encoder-decoder of "Attention is all you need" (Vaswani et al. 2017), as Marian models, and smaller ones."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers of encoder and of decoder, heads, width, inner width, vocabulary, parameters
_SIZES = {
    "transformer-nano": (2, 4, 128, 256, 2_048, 1_055_744),
    "transformer-micro": (3, 4, 256, 1_024, 4_096, 6_840_320),
    "transformer-base": (6, 8, 512, 2_048, 37_000, 63_606_784),
    "transformer-big": (6, 16, 1_024, 4_096, 37_000, 215_293_952),
}


class Transformer(Family):
    """Sinusoidal positions, one matrix for both vocabularies and the output, norms after the sums; no dropout."""

    name = "transformer"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "marian",
                {
                    "encoder_layers": layers,
                    "decoder_layers": layers,
                    "encoder_attention_heads": heads,
                    "decoder_attention_heads": heads,
                    "d_model": width,
                    "encoder_ffn_dim": inner,
                    "decoder_ffn_dim": inner,
                    "vocab_size": vocabulary,
                    "pad_token_id": 0,
                    "decoder_start_token_id": 0,
                    "eos_token_id": 1,
                    "forced_eos_token_id": None,
                    "max_position_embeddings": 512,
                    "scale_embedding": True,
                    "activation_function": "relu",
                    "dropout": 0.0,
                    "attention_dropout": 0.0,
                    "activation_dropout": 0.0,
                },
                parameters,
                "Vaswani et al. 2017, Table 3" if width >= 512 else "the same architecture, smaller",
                "AutoModelForSeq2SeqLM",
            )
            for name, (layers, heads, width, inner, vocabulary, parameters) in _SIZES.items()
        ]
