"""SegFormer (Xie et al. 2021), and a smaller one for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: blocks of each stage, their widths, width of the decoder, image size, parameters with 150 classes
_SIZES = {
    "segformer-nano": ((1, 1, 1, 1), (16, 32, 64, 96), 64, 128, 357_174),
    "segformer-b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256, 512, 3_752_694),
    "segformer-b1": ((2, 2, 2, 2), (64, 128, 320, 512), 256, 512, 13_715_798),
    "segformer-b2": ((3, 4, 6, 3), (64, 128, 320, 512), 768, 512, 27_461_974),
    "segformer-b3": ((3, 4, 18, 3), (64, 128, 320, 512), 768, 512, 47_337_814),
    "segformer-b4": ((3, 8, 27, 3), (64, 128, 320, 512), 768, 512, 64_108_374),
    "segformer-b5": ((3, 6, 40, 3), (64, 128, 320, 512), 768, 640, 84_708_694),
}


class Segformer(Family):
    """Four stages of ever fewer and wider positions, and a decoder that adds them up; no dropout."""

    name = "segformer"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "segformer",
                {
                    "depths": list(depths),
                    "hidden_sizes": list(widths),
                    "decoder_hidden_size": decoder,
                    "num_attention_heads": [1, 2, 5, 8] if widths[2] % 5 == 0 else [1, 2, 4, 6],
                    "image_size": size,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                    "classifier_dropout_prob": 0.0,
                    "drop_path_rate": 0.0,
                    "num_labels": 150,
                    "initializer_range": 0.1 if name == "segformer-nano" else 0.02,
                },
                parameters,
                "the same architecture, smaller" if name == "segformer-nano" else "Xie et al. 2021, Tables 1 and 6",
                "AutoModelForSemanticSegmentation",
            )
            for name, (depths, widths, decoder, size, parameters) in _SIZES.items()
        ]
