"""Image classification: one label for an image, several labels, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.media import Decode
from burnish.task import Batch, Example, Records, Row
from burnish.tasks.classification import Classification, ClassificationSettings
from burnish.tasks.images import ImageTask, data_of, pixels_of

#: Pictures of the worst errors in the report.
_MOST_SHOWN = 24


class ImageClassificationSettings(ClassificationSettings):
    """Judge an image."""


class ImageClassification(ImageTask, Classification):
    """One label per image, several, or a number; see `Classification` for what is learned and measured."""

    name = "image-classification"
    Settings = ImageClassificationSettings
    auto_class = "AutoModelForImageClassification"
    decodes = "reduced"

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        if self.kind == "single" and len(facts.get("labels", ())) > 5:
            self.metric_names = (*self.metric_names, "top5_accuracy")

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"image": data.image, "label": data.label}

    def example(self, row: Row, decode: Decode) -> Example | str:
        seen = self.seen(row.values["image"], decode)
        return seen if isinstance(seen, str) else {**seen, "label": self.target(row)}

    def collate(self, examples: Sequence[Example]) -> Batch:
        lengths = [int(example["positions"][0]) for example in examples]
        return Batch({"pixel_values": self.images(examples)}, *self.targets(examples), lengths)

    def metrics(self, records: Records) -> dict[str, float]:
        """What `Classification` measures and, of more than five labels, how often the right one is among the first five."""
        found = super().metrics(records)
        if "top5_accuracy" not in self.metric_names:
            return found
        first = np.argpartition(-records["scores"], 5, axis=1)[:, :5]
        return found | {"top5_accuracy": float((first == records["label"][:, None]).any(1).mean())}

    def caption(self, example: Example) -> str:
        said = self.said(example["label"])
        if "other" not in example:
            return said
        share = float(example["share"][0])
        return f"{share:.0%} {said}, {1 - share:.0%} {self.said(example['other'])}"

    def pictures(self, records: Records, example: Callable[[int], Example]) -> list[dict[str, Any]]:
        if self.kind != "single":
            return []
        scores, labels = records["scores"], records["label"]
        wrong = np.flatnonzero(scores.argmax(1) != labels)
        worst = wrong[np.argsort(scores[wrong, labels[wrong]], kind="stable")][:_MOST_SHOWN]
        shown = [
            {
                "image": data_of(pixels_of(example(row))),
                "caption": f"{self.names[labels[row]]}, taken for {self.names[scores[row].argmax()]} ({scores[row].max():.0%})",
            }
            for row in worst.tolist()
        ]
        return [{"kind": "pictures", "title": "Worst errors", "pictures": shown}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        answers = []
        for picture, pixels in self.asked_pictures(asked):  # each by itself: an answer depends on its image alone
            images = self.images([self.as_shown(pixels)]).to(model.device, model.dtype)
            with torch.inference_mode():
                logits = model(pixel_values=images).logits.float()
            answers.append({"image": picture.name, **self.answer(logits[0])})
        return answers
