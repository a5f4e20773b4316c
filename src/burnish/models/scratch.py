"""Models from scratch: presets by family and published size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from burnish.errors import unknown
from burnish.task import find_subclasses


@dataclass(frozen=True)
class Preset:
    """One size of one family.

    Args:
        name: what `--preset` takes.
        model_type: transformers' name of the architecture.
        options: settings of its config.
        parameters: how many parameters it has, as published where it is.
        source: paper or reference implementation.
        auto_class: the transformers Auto class whose parameters are counted.
    """

    name: str
    model_type: str
    options: dict[str, Any]
    parameters: int
    source: str
    auto_class: str = "AutoModelForCausalLM"

    @property
    def reads(self) -> str:
        """What its rows are, as `Task.reads` has it."""
        known = {"image_size": "images", "feature_projection_input_dim": "audio", "num_mel_bins": "audio"}
        return next((reads for name, reads in known.items() if name in self.options), "text")


class Family(ABC):
    """A family of presets. A new one is one file in `burnish/models/presets` with a subclass of this."""

    name: ClassVar[str]

    @abstractmethod
    def presets(self) -> list[Preset]:
        """Return the sizes, smallest first."""

    def shaped(self, layers: int, width: int, context: int, vocabulary: int) -> dict[str, Any] | None:
        """Return the config of a size between the published ones, with 12 width^2 weights in each layer and heads of 64.

        None: this family comes in its published sizes only.
        """
        return None


def families() -> list[Family]:
    """Return every family."""
    return [family() for family in find_subclasses("burnish.models.presets", Family).values()]


def presets() -> dict[str, Preset]:
    """Return every preset by name."""
    return {preset.name: preset for family in families() for preset in family.presets()}


def find_preset(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        UserError: there is none, with the nearest name.
    """
    known = presets()
    if name not in known:
        raise unknown("preset", name, known)
    return known[name]
