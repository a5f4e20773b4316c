"""One number, the operations that may be spent, and all that follows from it: shape, batch, learning rate, length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from burnish.config import Config
from burnish.errors import UserError
from burnish.models.scratch import Preset, families, find_preset
from burnish.units import readable_count

#: What a model of the best size for its operations learns from, a parameter (Hoffmann et al. 2022, section 3.4).
TOKENS_PER_PARAMETER = 20
#: How wide a model is for each of its layers, and so is each of its heads (nanochat's shapes).
WIDTH_PER_LAYER = 64
_MOST_LAYERS = 400


@dataclass(frozen=True)
class Dial:
    """What follows from a number of operations.

    Args:
        compute: floating-point operations of the whole training, 6 N D.
        layers: so many that N is nearest to the best size.
        parameters: N, those in matrix products.
        tokens: D.
        batch_tokens: tokens of a step.
        sequence: tokens of a row.
        lr: peak learning rate of AdamW.
    """

    compute: float
    preset: Preset
    layers: int
    parameters: int
    tokens: float
    batch_tokens: float
    sequence: int
    lr: float

    @property
    def batch(self) -> int:
        """Rows of a step."""
        return max(1, round(self.batch_tokens / self.sequence))

    def rows(self) -> list[tuple[str, str, str]]:
        """Return what was derived, as name, value and reason."""
        best, width = math.sqrt(self.compute / 6 / TOKENS_PER_PARAMETER), WIDTH_PER_LAYER * self.layers
        size = f"{readable_count(self.parameters)} parameters, {readable_count(self.tokens)} tokens"
        return [
            (
                "dial",
                f"{self.compute:g} operations: {size}",
                f"C = 6 N D with D = {TOKENS_PER_PARAMETER} N gives N = {readable_count(best)} "
                "(Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, section 3.4)",
            ),
            (
                "dial, shape",
                f"{self.layers} layers, {width} wide, {self.layers} heads",
                f"{WIDTH_PER_LAYER} wide for each layer and head (nanochat); nearest N = 12 L W^2 + V W",
            ),
            ("dial, row", f"{self.sequence} tokens", "the power of two next to the width, 256 to 2,048 (our choice)"),
            (
                "dial, batch",
                f"{self.batch} rows, {readable_count(self.batch * self.sequence)} tokens",
                f"0.2920 C^0.3271 = {readable_count(self.batch_tokens)} tokens (DeepSeek-AI 2024, section 3.1)",
            ),
            ("dial, rate", f"{self.lr:.2g}", "0.3118 C^-0.1250 (DeepSeek-AI 2024, section 3.1)"),
        ]


def turned(compute: float, name: str, vocabulary: int | None) -> Dial:
    """Return what follows from `compute` operations for the family of a preset.

    Args:
        vocabulary: None: the preset's.

    Raises:
        UserError: there is no such preset, or its family has no dial.
    """
    preset = find_preset(name)
    family = next(family for family in families() if name in {size.name for size in family.presets()})
    if family.shaped(2, 128, 256, 512) is None:
        known = sorted(family.name for family in families() if family.shaped(2, 128, 256, 512) is not None)
        raise UserError(f"model.compute: {family.name} has no dial; take a preset of {', '.join(known)}.")
    size = vocabulary or preset.options["vocab_size"]
    best = math.sqrt(compute / 6 / TOKENS_PER_PARAMETER)
    layers = min(range(2, _MOST_LAYERS), key=lambda count: abs(math.log(_products(count, size) / best)))
    parameters, width = _products(layers, size), WIDTH_PER_LAYER * layers
    sequence = min(2048, max(256, 1 << round(math.log2(width))))
    options = family.shaped(layers, width, sequence, size)
    assert options is not None  # the family has a dial
    return Dial(
        compute=compute,
        preset=Preset(f"{family.name}-d{layers}", preset.model_type, options, parameters, "model.compute"),
        layers=layers,
        parameters=parameters,
        tokens=compute / 6 / parameters,
        batch_tokens=0.2920 * compute**0.3271,
        sequence=sequence,
        lr=float(f"{0.3118 * compute**-0.1250:.2g}"),
    )


def _products(layers: int, vocabulary: int) -> int:
    """Return the parameters in matrix products: 12 W^2 a layer and the output layer."""
    width = WIDTH_PER_LAYER * layers
    return 12 * layers * width**2 + vocabulary * width


def dial_of(config: Config) -> Dial | None:
    """Return what follows from `model.compute`; None: it is not given.

    Raises:
        UserError: it cannot be used with this model.
    """
    model = config.model
    if model.compute is None:
        return None
    if model.preset is None:
        raise UserError("model.compute: a pretrained model has its size already; give it with --preset only.")
    return turned(model.compute, model.preset, model.vocab_size)


def dialled(config: Config) -> Config:
    """Return the settings with what follows from `model.compute`, where the user did not say otherwise.

    Raises:
        UserError: it cannot be used with this model.
    """
    dial = dial_of(config)
    if dial is None:
        return config
    derived: dict[str, dict[str, Any]] = {
        "train": {"batch": dial.batch, "sequence": dial.sequence, "length": f"{dial.tokens / 1e6:.4g} Mtok"},
        "optim": {"lr": dial.lr},
    }
    groups = {}
    for group, values in derived.items():
        given = getattr(config, group)
        open_ones = {name: value for name, value in values.items() if name not in given.model_fields_set}
        groups[group] = given.model_copy(update=open_ones)
    return config.model_copy(update=groups)


def preset_of(config: Config) -> Preset:
    """Return the preset of a run from scratch, of the size that was asked for.

    Raises:
        UserError: there is none of that name.
    """
    dial = dial_of(config)
    return dial.preset if dial else find_preset(config.model.preset or "")
