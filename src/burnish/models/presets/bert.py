"""BERT (Devlin et al. 2019; the small sizes: Turc et al. 2019), and smaller ones for two CPU cores."""

from __future__ import annotations

from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, context, vocabulary, parameters of the backbone with its pooler
_SIZES = {
    "bert-nano": (2, 2, 128, 256, 2_048, 708_480),
    "bert-micro": (4, 4, 256, 256, 4_096, 4_339_968),
    "bert-tiny": (2, 2, 128, 512, 30_522, 4_385_920),
    "bert-mini": (4, 4, 256, 512, 30_522, 11_170_560),
    "bert-small": (4, 8, 512, 512, 30_522, 28_763_648),
    "bert-medium": (8, 8, 512, 512, 30_522, 41_373_184),
    "bert-base": (12, 12, 768, 512, 30_522, 109_482_240),
    "bert-large": (24, 16, 1_024, 512, 30_522, 335_141_888),
}


class Bert(Family):
    """Four times as wide inside as outside, 64 wide heads, dropout 0 (as RoBERTa's successors: nothing is seen twice)."""

    name = "bert"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name,
                "bert",
                {
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "hidden_size": width,
                    "intermediate_size": 4 * width,
                    "max_position_embeddings": context,
                    "vocab_size": vocabulary,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                    "initializer_range": _initial(width, vocabulary),
                },
                parameters,
                _source(width, vocabulary),
                "AutoModel",
            )
            for name, (layers, heads, width, context, vocabulary, parameters) in _SIZES.items()
        ]


def _initial(width: int, vocabulary: int) -> float:
    """Return the standard deviation of the first weights: as published, and in our own small sizes wider.

    0.02 suits a width of 768. At 128 it leaves all attention uniform and a hundredth of what it is added to, so that for
    hundreds of steps nothing is learned but how common tokens are (docs/log.md).
    """
    return 0.02 if vocabulary == 30_522 else width**-0.5


def _source(width: int, vocabulary: int) -> str:
    if vocabulary != 30_522:
        return "the same architecture, smaller"
    return "Devlin et al. 2019, section 3" if width >= 768 else "Turc et al. 2019, Table 1"
