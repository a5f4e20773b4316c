"""GPT-3 (Brown et al. 2020): the eight published sizes, as GPT-2 models.

The paper's table as printed does not divide for two sizes: 1.3B has 24 heads of 128 on a width of 2,048, here 16; 13B is
5,140 wide with 40 heads of 128, here 5,120. Every second of the paper's layers is sparse (banded). That is left out, so that
the models open as GPT-2, unless the name ends with `-banded`: those are of an architecture of ours.
"""

from __future__ import annotations

from typing import Any

from burnish.models.presets.gpt2 import gpt2_options
from burnish.models.scratch import Family, Preset

#: name: layers, heads, width, parameters
_SIZES = {
    "gpt3-nano": (4, 4, 128, 1_317_632),
    "gpt3-micro": (4, 4, 256, 4_208_128),
    "gpt3-125m": (12, 12, 768, 125_226_240),
    "gpt3-350m": (24, 16, 1_024, 355_871_744),
    "gpt3-760m": (24, 16, 1_536, 760_300_032),
    "gpt3-1.3b": (24, 16, 2_048, 1_315_723_264),
    "gpt3-2.7b": (32, 32, 2_560, 2_651_553_280),
    "gpt3-6.7b": (32, 32, 4_096, 6_658_404_352),
    "gpt3-13b": (40, 40, 5_120, 12_853_386_240),
    "gpt3-175b": (96, 96, 12_288, 174_604_259_328),
}


class Gpt3(Family):
    """A context of 2,048 for all sizes, and GPT-2's vocabulary for the published ones."""

    name = "gpt3"

    def presets(self) -> list[Preset]:
        return [
            Preset(
                name + ending,
                model_type,
                gpt2_options(layers, heads, width, context=2_048, vocabulary=50_257 if width >= 768 else 2_048),
                parameters,
                "Brown et al. 2020, Table 2.1" if width >= 768 else "the same architecture, smaller",
            )
            for ending, model_type in (("", "gpt2"), ("-banded", "gpt3"))
            for name, (layers, heads, width, parameters) in _SIZES.items()
        ]

    def shaped(self, layers: int, width: int, context: int, vocabulary: int) -> dict[str, Any]:
        return gpt2_options(layers, width // 64, width, context, vocabulary)
