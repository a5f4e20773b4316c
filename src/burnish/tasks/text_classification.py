"""Text classification: one label for a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.config import DataSettings, GenerateSettings
from burnish.errors import UserError, nearest
from burnish.task import Batch, Example, Records, Row, Task

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_BINS = 10


class TextClassification(Task):
    """One label per text, learned by cross-entropy over the labels seen in training."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    metric_names = ("accuracy", "loss", "macro_f1", "matthews", "calibration_error")
    lower_is_better = frozenset({"loss", "calibration_error"})

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"text": data.text, "label": data.label}

    @classmethod
    def learn(cls, rows: Iterable[Row]) -> dict[str, Any]:
        counts = Counter(label_name(row) for row in rows)
        if len(counts) < 2:
            only = next(iter(counts), None)
            raise UserError(
                f"data.label: classification needs at least two labels; the training rows have only {only!r}."
            )
        if len(counts) > 10_000:
            raise UserError(
                f"data.label: {len(counts):,} different labels in the training rows; is {sorted(counts)[0]!r} really a class?"
            )
        labels = sorted(counts)
        return {"labels": labels, "counts": [counts[label] for label in labels]}

    def model_options(self) -> dict[str, Any]:
        labels = self.facts["labels"]
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
            "pad_token_id": self._pad_id(),
        }

    def cuts_long_rows(self) -> bool:
        return True

    def _pad_id(self) -> int:
        """Return the id that fills rows up; decoders without one of their own find a text's end by it."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(number for number in ids if number is not None)

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        index = {label: number for number, label in enumerate(self.facts["labels"])}
        waiting: list[Row] = []

        def encoded() -> Iterator[tuple[Example, str]]:
            texts = [row.values["text"] for row in waiting]
            for row, ids in zip(waiting, self._ids(texts, sequence), strict=True):
                yield {"input_ids": ids, "label": np.array([index[label_name(row)]])}, row.where

        for row in rows:
            if label_name(row) not in index:
                raise UserError(
                    f"{row.where}: the label {label_name(row)!r} does not occur in the training rows "
                    f"(there: {', '.join(list(index)[:10])}).{nearest(label_name(row), index)}"
                )
            waiting.append(row)
            if len(waiting) == _ENCODED_AT_ONCE:
                yield from encoded()
                waiting.clear()
        yield from encoded()

    def _ids(self, texts: list[str], sequence: int) -> list[np.ndarray]:
        if not texts:
            return []
        encodings = self.tokenizer(texts, truncation=True, max_length=sequence, return_attention_mask=False)
        return [np.array(ids) for ids in encodings["input_ids"]]

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        lengths = [len(example["input_ids"]) for example in examples]
        real = np.arange(max(lengths)) < np.array(lengths)[:, None]
        padded = np.full(real.shape, self._pad_id())
        padded[real] = np.concatenate([example["input_ids"] for example in examples])
        ids, mask = torch.from_numpy(padded), torch.from_numpy(real.astype(np.int64))
        labels = torch.from_numpy(np.array([example["label"][0] for example in examples], np.int64))
        inputs = {"input_ids": ids, "attention_mask": mask}
        return Batch(inputs, {"labels": labels}, {"loss": len(examples)}, lengths)

    def _log_probabilities(self, model: Any, batch: Batch) -> torch.Tensor:
        return model(**batch.inputs).logits.float().log_softmax(-1)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        return {
            "loss": functional.nll_loss(self._log_probabilities(model, batch), batch.targets["labels"], reduction="sum")
        }

    def score(self, model: Any, batch: Batch) -> Records:
        probabilities = self._log_probabilities(model, batch).exp()
        return {"probabilities": probabilities.cpu().numpy(), "label": batch.targets["labels"].cpu().numpy()}

    def metrics(self, records: Records) -> dict[str, float]:
        """Loss, accuracy, macro F1, Matthews correlation and expected calibration error (10 bins)."""
        import torch
        from torchmetrics.functional import classification as measure

        probabilities = torch.from_numpy(records["probabilities"])
        labels = torch.from_numpy(records["label"]).long()
        classes = probabilities.shape[1]
        of_label = probabilities.gather(1, labels[:, None])[:, 0].clamp_min(1e-12)
        return {
            "loss": float(-of_label.log().mean()),
            "accuracy": float(measure.multiclass_accuracy(probabilities, labels, classes, average="micro")),
            "macro_f1": float(measure.multiclass_f1_score(probabilities, labels, classes, average="macro")),
            "matthews": _matthews(confusion(records)),
            "calibration_error": float(
                measure.multiclass_calibration_error(probabilities, labels, classes, n_bins=_BINS)
            ),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        probabilities, labels = records["probabilities"], records["label"]
        names = self.facts["labels"]
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        matrix = confusion(records)
        bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        points = [
            {
                "confidence": float(confidence[bins == b].mean()),
                "accuracy": float((predicted == labels)[bins == b].mean()),
                "rows": int((bins == b).sum()),
            }
            for b in range(_BINS)
            if (bins == b).any()
        ]
        figures: list[dict[str, Any]] = [{"kind": "calibration", "title": "Calibration", "points": points}]
        if len(names) <= 50:
            figures.insert(
                0, {"kind": "matrix", "title": "Confusion matrix", "labels": names, "values": matrix.tolist()}
            )
        return figures

    def predict(self, model: Any, texts: Sequence[str], settings: GenerateSettings, seed: int) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        names = self.facts["labels"]
        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length)
        answers = []
        for text in texts:  # each by itself, so an answer does not depend on what else was asked
            batch = self.collate([{"input_ids": self._ids([text], limit)[0], "label": np.array([0])}])
            with torch.inference_mode():
                row = self._log_probabilities(model, batch.to(str(model.device))).exp()[0].cpu().tolist()
            best = max(range(len(row)), key=row.__getitem__)
            scores = {name: round(value, 6) for name, value in zip(names, row, strict=True)}
            answers.append({"text": text, "label": names[best], "score": round(row[best], 6), "scores": scores})
        return answers


def confusion(records: Records) -> np.ndarray:
    """Return how often each label (row) was predicted as each (column)."""
    classes = records["probabilities"].shape[1]
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (records["label"], records["probabilities"].argmax(1)), 1)
    return matrix


def _matthews(matrix: np.ndarray) -> float:
    """Return the correlation of labels and predictions; 0 where one of them never varies (torchmetrics 1.9 gives noise).

    Source: Gorodkin 2004, equation 8.
    """
    true, predicted, total = matrix.sum(1).astype(float), matrix.sum(0).astype(float), float(matrix.sum())
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum())
    return float((matrix.trace() * total - true @ predicted) / spread**0.5) if spread > 0 else 0.0


def label_name(row: Row) -> str:
    """Return the row's label as text: `1`, `1.0` read from one file and `"1"` from another are the same label."""
    value = row.values["label"]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
