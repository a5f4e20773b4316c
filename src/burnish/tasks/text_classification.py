"""Text classification: one label for a text or a pair of texts, several labels, or a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from burnish.config import DataSettings, GenerateSettings
from burnish.data.new_tokens import opened
from burnish.data.tokenizer import encode_texts, fill_up, pad_id
from burnish.task import Batch, Example, Row
from burnish.tasks.classification import Classification, ClassificationSettings

_ENCODED_AT_ONCE = 1000


class TextClassificationSettings(ClassificationSettings):
    """Judge a text, or a pair of texts."""


class TextClassification(Classification):
    """One label per text or pair of texts, several, or a number; see `Classification` for what is learned and measured."""

    name = "text-classification"
    version = 2
    Settings = TextClassificationSettings
    auto_class = "AutoModelForSequenceClassification"
    asks = ("text", "pair")
    takes_prompt = True

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"text": data.text} | ({"pair": data.pair} if data.pair else {}) | {"label": data.label}

    def model_options(self) -> dict[str, Any]:
        return super().model_options() | {"pad_token_id": pad_id(self.tokenizer)}

    def cuts_long_rows(self) -> bool:
        return True

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        remaining = iter(rows)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            targets = [self.target(row) for row in waiting]
            inputs = self._inputs([row.values for row in waiting], sequence)
            for row, features, target in zip(waiting, inputs, targets, strict=True):
                yield {**features, "label": target}, row.where

    def _inputs(self, rows: Sequence[Mapping[str, Any]], sequence: int) -> list[Example]:
        pairs = [row["pair"] for row in rows] if rows and "pair" in rows[0] else None
        return encode_texts(self.tokenizer, [opened(self.tokenizer, row["text"]) for row in rows], sequence, pairs)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, examples)
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        return Batch(inputs, *self.targets(examples), [len(example["input_ids"]) for example in examples])

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length)
        answers = []
        for given in asked:  # each by itself, so an answer does not depend on what else was asked
            batch = self.collate([{**self._inputs([given], limit)[0], "label": self.nothing}])
            with torch.inference_mode():
                logits = model(**batch.to(str(model.device)).inputs).logits.float()
            answers.append({**given, **self.answer(logits[0])})
        return answers
