"""Audio classification: one label for a sound, such as the word that is said or who says it, several labels, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from burnish.config import DataSettings, GenerateSettings
from burnish.data.media import Decode
from burnish.task import Batch, Example, Row
from burnish.tasks.classification import Classification, ClassificationSettings
from burnish.tasks.sounds import AudioTask


class AudioClassificationSettings(ClassificationSettings):
    """Judge a sound."""

    seconds: int = Field(30, ge=1, le=600)
    """The longest sound; a longer one is left out and listed."""


class AudioClassification(AudioTask, Classification):
    """One label per sound, several, or a number; see `Classification` for what is learned and measured."""

    name = "audio-classification"
    Settings = AudioClassificationSettings
    auto_class = "AutoModelForAudioClassification"

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"audio": data.audio, "label": data.label}

    def model_options(self) -> dict[str, Any]:
        return super().model_options() | Classification.model_options(self)

    def example(self, row: Row, decode: Decode) -> Example | str:
        heard = self.heard(row.values["audio"], decode)
        return heard if isinstance(heard, str) else {**heard, "label": self.target(row)}

    def collate(self, examples: Sequence[Example]) -> Batch:
        return Batch(self.inputs(examples), *self.targets(examples), self.lengths(examples))

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        answers = []
        with self.decoders(1) as decoders:
            for sound, samples in self.asked_media(asked, decoders, "sound"):  # each by itself
                inputs = {
                    name: value.to(model.device) for name, value in self.inputs([self.whole(sound, samples)]).items()
                }
                with torch.inference_mode():
                    logits = model(**inputs).logits.float()
                answers.append({"audio": sound.name, **self.answer(logits[0])})
        return answers
