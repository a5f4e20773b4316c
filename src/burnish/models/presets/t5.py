"""T5 (Raffel et al. 2020): the five published sizes, and smaller ones for two CPU cores. Encoder and decoder."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers of encoder and of decoder, heads, width, width of a head, inner width, vocabulary, parameters
_SIZES = {
    "t5-nano": (2, 4, 128, 32, 256, 2_048, 919_296),
    "t5-micro": (3, 4, 256, 64, 512, 4_096, 4_985_344),
    "t5-small": (6, 8, 512, 64, 2_048, 32_128, 60_506_624),
    "t5-base": (12, 12, 768, 64, 3_072, 32_128, 222_903_552),
    "t5-large": (24, 16, 1_024, 64, 4_096, 32_128, 737_668_096),
    "t5-3b": (24, 32, 1_024, 128, 16_384, 32_128, 2_851_598_336),
    "t5-11b": (24, 128, 1_024, 128, 65_536, 32_128, 11_307_321_344),
}


class T5(Family):
    """As published, but without dropout."""

    name = "t5"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "t5",
                {
                    "num_layers": layers,
                    "num_heads": heads,
                    "d_model": width,
                    "d_kv": head_width,
                    "d_ff": inner,
                    "vocab_size": vocabulary,
                    "dropout_rate": 0.0,
                    "classifier_dropout": 0.0,
                },
                parameters,
                "Raffel et al. 2020, section 3.7; google-research/text-to-text-transfer-transformer"
                if vocabulary == 32_128
                else "the same architecture, smaller",
                "AutoModelForSeq2SeqLM",
            )
            for name, (layers, heads, width, head_width, inner, vocabulary, parameters) in _SIZES.items()
        ]
