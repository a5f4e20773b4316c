"""What every task about sounds shares: hearing, varying and stacking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from burnish.config import AugmentSettings, TaskSettings
from burnish.data.augment_sounds import is_on, varied
from burnish.data.media import Decode, Decoders
from burnish.data.sounds import FULL, Sound, flaw_of
from burnish.errors import UserError
from burnish.task import Example, Task
from burnish.tasks.media import MediaTask

if TYPE_CHECKING:
    import torch

#: The shortest sound that is heard, in seconds.
LEAST_SECONDS = 0.05


class AudioTask(MediaTask):
    """A task whose rows are sounds: decoded once, at the model's rate, and kept as 16 bits a sample.

    What the model gets of them, such as a log-mel spectrum, is made when a batch is, by its own feature extractor.
    """

    reads = "audio"
    asks = ("audio",)
    config: ClassVar[Any] = None
    """The config of the model, as it is before this task changes it."""

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        return type(cls.__name__, (cls,), {"__doc__": cls.__doc__, "__module__": cls.__module__, "config": config})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self.extractor = getattr(tokenizer, "feature_extractor", tokenizer)
        self.rate: int = self.extractor.sampling_rate
        """Samples a second."""
        self._counts: dict[int, int] = {}

    def model_options(self) -> dict[str, Any]:
        """Return the settings by which a model draws no masks and leaves out no layers by itself: `augment` masks sounds."""
        own = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
        own |= {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
        return {name: value for name, value in own.items() if hasattr(self.config, name)}

    def check(self, model: Any) -> None:
        from burnish.models.hearing import prepare

        prepare(model)

    def sight(self, model: Any) -> Any:
        from burnish.models.vision import hear

        silence = np.zeros(self.seconds * self.rate, np.float32)
        return hear(model, self.largest(self.features(silence)), self.seconds)

    def largest(self, features: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the model's inputs for a sound of which it gets these features."""
        import torch

        return {self.input_name: torch.from_numpy(features[None])}

    # -- rows to examples --------------------------------------------------------------------------------------------

    def decoders(self, count: int | None = None) -> Decoders:
        return Decoders(count, self.rate, self.seconds)

    def heard(self, sound: Sound, decode: Decode) -> Example | str:
        """Return a sound as its part of an example, or why there is none."""
        samples = decode(sound, "sound")
        found = samples if isinstance(samples, str) else self.as_heard(samples)
        return f"{sound.name} {found}" if isinstance(found, str) else found

    def as_heard(self, samples: np.ndarray) -> Example | str:
        """Return int16 samples as their part of an example, or why they are none."""
        seconds = len(samples) / self.rate
        if seconds > self.seconds:  # decoded by whoever gave it
            return f"is longer than {self.seconds} seconds; cut it into pieces"
        frames = self.frames(len(samples)) if seconds >= LEAST_SECONDS else 0
        if not frames or not self.positions(frames):
            return f"is too short, {seconds:.3f} seconds"
        example = {
            "samples": np.ascontiguousarray(samples).view(np.uint8),
            "frames": np.array([frames]),
            "flaw": np.array([flaw_of(samples)]),
        }
        return example if self.window else example | {"positions": np.array([self.positions(frames)])}

    # -- features ----------------------------------------------------------------------------------------------------

    @property
    def input_name(self) -> str:
        """What the model calls what it hears."""
        return self.extractor.model_input_names[0]

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Return what the model gets of float32 samples: [frames, ...], or of a window always the same shape."""
        found = self.extractor(samples, sampling_rate=self.rate, return_tensors="np")
        value, mask = found[self.input_name][0], found.get("attention_mask")
        return value if mask is None or len(mask[0]) != len(value) else value[: int(mask[0].sum())]

    @cached_property
    def window(self) -> bool:
        """Whether every sound is filled up to one length, as for Whisper and AST; else each has its own."""
        shapes = [self.features(np.zeros(size, np.float32)).shape for size in (self.rate // 2, self.rate)]
        return shapes[0] == shapes[1]

    @cached_property
    def seconds(self) -> int:
        """The longest sound that is heard at once: the setting, or what a window holds where that is less."""
        if not self.window:
            return self.settings.seconds
        samples = getattr(self.extractor, "n_samples", None) or self.extractor.max_length * self.rate // 100
        return min(self.settings.seconds, samples // self.rate)

    def frames(self, samples: int) -> int:
        """Return how many samples or spectra the model gets of so many samples."""
        if samples not in self._counts:
            self._counts[samples] = len(self.features(np.zeros(samples, np.float32)))
        return self._counts[samples]

    @cached_property
    def _shape(self) -> Any:
        from burnish.models.load import skeleton

        return skeleton("AutoModel", self.config)  # no head is needed to count

    def positions(self, frames: int) -> int:
        """Return how many positions the model makes of so many samples or spectra; of a window some number."""
        from burnish.models.hearing import positions_of

        return 1 if self.window else positions_of(self._shape, frames)

    # -- examples to batches -----------------------------------------------------------------------------------------

    @property
    def varies(self) -> bool:
        return is_on(self.augment)

    def vary(self, example: Example, draw: int, following: Example | None = None) -> Example:
        return self.varied(example, draw, self.augment)

    def varied(self, example: Example, draw: int, settings: AugmentSettings) -> Example:
        """Return the example with the features of its varied samples in place of those."""
        features = self.features(varied(settings, samples_of(example), self.rate, draw))
        return {**self.replayed(example), "features": features, "frames": np.array([len(features)])}

    def replayed(self, example: Example) -> Example:
        return {name: value for name, value in example.items() if name not in ("samples", "features")}

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return what the model hears, each row as it would alone; of examples without samples a stand-in of that shape."""
        import torch

        counts = [int(example["frames"][0]) for example in examples]
        if examples[0].keys() & {"samples", "features"}:
            found = torch.nn.utils.rnn.pad_sequence(list(map(self._features_of, examples)), batch_first=True)
        else:
            shape = self.features(np.zeros(self.rate, np.float32)).shape[1:]
            found = torch.zeros(1).expand(len(counts), max(counts), *shape)
        if self.window:
            return {self.input_name: found}
        real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return {self.input_name: found, "attention_mask": real.long()}

    def _features_of(self, example: Example) -> torch.Tensor:
        import torch

        known = example.get("features")
        return torch.from_numpy(self.features(samples_of(example)) if known is None else known)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Return how many positions each example has in the model."""
        if self.window:
            return [int(example["positions"][0]) for example in examples]
        return [self.positions(int(example["frames"][0])) for example in examples]

    def whole(self, sound: Sound, samples: np.ndarray) -> Example:
        """Return what is asked about as its part of an example.

        Raises:
            UserError: it is none.
        """
        found = self.as_heard(samples)
        if isinstance(found, str):
            raise UserError(f"{sound.name}: {found}.")
        return found


def samples_of(example: Example) -> np.ndarray:
    """Return the samples of an example: float32 from -1 to 1."""
    return example["samples"].view(np.int16).astype(np.float32) / FULL
