"""w2v-BERT 2.0 (Barrault et al. 2023), and smaller ones for two CPU cores: layers of convolution and attention on spectra."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, log-mel spectra that are one frame, parameters
_SIZES = {
    "w2v-bert-nano": (4, 4, 128, 3, 1_577_184),
    "w2v-bert-micro": (8, 4, 256, 2, 12_254_272),
    "w2v-bert-2.0": (24, 16, 1_024, 2, 580_492_096),
}


class W2vBert(Family):
    """As published, but without dropout and without masks of the model's own; 50 frames a second, or 33."""

    name = "w2v-bert"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "wav2vec2-bert",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "hidden_size": width,
                    "intermediate_size": 4 * width,
                    "output_hidden_size": width,
                    "feature_projection_input_dim": 80 * spectra,
                    "hidden_dropout": 0.0,
                    "activation_dropout": 0.0,
                    "attention_dropout": 0.0,
                    "feat_proj_dropout": 0.0,
                    "final_dropout": 0.0,
                    "conformer_conv_dropout": 0.0,
                    "layerdrop": 0.0,
                    "apply_spec_augment": False,
                    "mask_time_prob": 0.0,
                    "mask_feature_prob": 0.0,
                },
                parameters,
                "Barrault et al. 2023, section 3.2.1; facebook/w2v-bert-2.0"
                if name == "w2v-bert-2.0"
                else "the same architecture, smaller",
                "AutoModel",
            )
            for name, (layers, heads, width, spectra, parameters) in _SIZES.items()
        ]
