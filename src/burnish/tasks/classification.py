"""What every classification shares: one label for each row, several labels, or a number; what is classified comes beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from burnish.config import TaskSettings, TaughtSettings
from burnish.errors import UserError, nearest
from burnish.task import Batch, Example, FrozenModel, Records, Row, Task, label_options

if TYPE_CHECKING:
    import torch

_BINS = 10
_MOST_LABELS = 10_000
_PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}


class ClassificationSettings(TaughtSettings):
    """Settings of a task that gives labels or a number."""

    kind: Literal["auto", "single", "multi", "regression"] = "auto"
    """One label a row, several, or a number. auto: several where labels are lists, a number where all are and some have
    a fraction, else one."""
    separator: str | None = Field(None, min_length=1)
    """What stands between the labels of a row where several are written in one column, such as `|`."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a label counts in the loss by how rare it is among the training rows."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """Probability from which one of several labels is given. Default: for each label the best by F1 on validation rows."""


class Classification(Task):
    """One label, learned by cross-entropy; several, each by its own yes or no; or a number, by its square error.

    The loss of a step is a weighted mean: with `class_weights` each row counts by the weight of its label. With a teacher
    the distance from its predictions is a second term, a mean over rows. Where rows are blended in training, each label
    counts by its share.
    """

    Settings: ClassVar[type[TaskSettings]] = ClassificationSettings
    metric_names = ("accuracy", "loss", "macro_f1", "matthews", "calibration_error")
    lower_is_better = frozenset({"loss", "calibration_error", "mean_absolute_error"})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self.kind: str = facts.get("kind", "single")
        if self.kind == "multi":
            self.metric_names = ("macro_f1", "micro_f1", "exact_match", "loss")
        elif self.kind == "regression":
            self.metric_names = ("loss", "mean_absolute_error", "pearson", "spearman")

        if self.settings.teacher and self.kind != "single":
            raise UserError("task.teacher: a teacher teaches one label a row; drop it, or give --task.kind single.")

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: ClassificationSettings) -> dict[str, Any]:
        """Return the kind of labels there are and, unless they are numbers, their names and counts."""
        kind = _kind(rows, settings)
        if kind == "regression":
            values = [_number(row) for row in rows]
            if min(values) == max(values):
                raise UserError(f"data.label: all training rows have the same number, {values[0]:g}.")
            return {"kind": kind, "mean": sum(values) / len(values)}
        counts = Counter(label for row in rows for label in _labels(row, kind, settings.separator))
        if len(counts) < (1 if kind == "multi" else 2):
            only = next(iter(counts), None)
            raise UserError(
                f"data.label: classification needs at least two labels; the training rows have only {only!r}."
            )
        if len(counts) > _MOST_LABELS:
            raise UserError(
                f"data.label: {len(counts):,} different labels in the training rows; is {sorted(counts)[0]!r} really a class?"
            )
        labels = sorted(counts)
        total = sum(1 for _ in rows)
        return {"kind": kind, "labels": labels, "counts": [counts[label] for label in labels], "rows": total}

    @property
    def names(self) -> list[str]:
        """The labels, in the order of the model's outputs."""
        return self.facts.get("labels", ["value"])

    def model_options(self) -> dict[str, Any]:
        return {
            **label_options(self.names),
            "problem_type": _PROBLEMS[self.kind],
        }

    def target(self, row: Row) -> np.ndarray:
        """Return the label's number, a 0 or 1 for each label, or the value."""
        if self.kind == "regression":
            return np.array([_number(row)], np.float32)
        index = {label: number for number, label in enumerate(self.names)}
        found = _labels(row, self.kind, self.settings.separator)
        unknown = next((label for label in found if label not in index), None)
        if unknown is not None:
            raise UserError(
                f"{row.where}: the label {unknown!r} does not occur in the training rows "
                f"(there: {', '.join(list(index)[:10])}).{nearest(unknown, index)} If all its rows were held out, give "
                "--data.stratify or more rows of it."
            )
        numbers = [index[label] for label in found]
        return np.array(numbers) if self.kind == "single" else np.isin(np.arange(len(index)), numbers).astype(np.uint8)

    def targets(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return the `label` of each example as targets of the loss, and how much each of its terms counts."""
        import torch

        targets = {"labels": torch.from_numpy(self._labels(examples, "label"))}
        count = float(targets["labels"].numel())
        if "other" in examples[0]:
            targets["other"] = torch.from_numpy(self._labels(examples, "other"))
            targets["share"] = torch.from_numpy(np.concatenate([example["share"] for example in examples]))
        if self.settings.class_weights == "balanced" and self.kind != "regression":
            weights = self._weights(targets["labels"].numpy())
            targets["weights"], count = torch.from_numpy(weights.astype(np.float32)), float(weights.sum())
        counts = {"loss": count}
        if "remembered" in examples[0]:
            targets["remembered"] = torch.from_numpy(np.concatenate([one["remembered"] for one in examples]))
            counts["teacher"] = float(len(examples))
        return targets, counts

    def _labels(self, examples: Sequence[Example], name: str) -> np.ndarray:
        labels = np.stack([example[name] for example in examples])
        return labels[:, 0].astype(np.int64) if self.kind == "single" else labels.astype(np.float32)

    def _weights(self, labels: np.ndarray) -> np.ndarray:
        """Return how much each label counts [rows], by how rare it is; of several, each yes or no [rows, labels].

        The mean over the training rows is 1; of several labels, both sides of one count the same in all.
        """
        rows, counts = self.facts["rows"], np.array(self.facts["counts"])
        if self.kind == "single":
            return (rows / (len(counts) * counts))[labels]
        return np.where(labels == 1, rows / (2 * counts), rows / (2 * np.maximum(1, rows - counts)))

    def _losses(self, logits: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of each row [rows], or of each of its labels [rows, labels]."""
        losses = self._apart(logits, targets["labels"])
        if "other" in targets:
            share = targets["share"] if losses.ndim == 1 else targets["share"][:, None]
            losses = share * losses + (1 - share) * self._apart(logits, targets["other"])
        return losses * targets["weights"] if "weights" in targets else losses

    def _apart(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return how far the predictions are from the labels: [rows], or [rows, labels]."""
        from torch.nn import functional

        if self.kind == "single":
            return functional.cross_entropy(logits, labels, reduction="none")
        if self.kind == "multi":
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return (logits - labels).square()

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from burnish.ops.distillation import soft_losses

        logits = model(**batch.inputs).logits.float()
        own = self._losses(logits, batch.targets).sum()
        if "remembered" not in batch.targets:
            return {"loss": own}
        share = self.settings.teacher_weight
        apart = soft_losses(logits, batch.targets["remembered"], self.settings.teacher_temperature)
        return {"loss": (1 - share) * own, "teacher": share * apart.sum()}

    def frozen_model(self) -> FrozenModel | None:
        return FrozenModel(self.settings.teacher, "task.teacher", scores=False) if self.settings.teacher else None

    def check_frozen(self, model: Any) -> None:
        if set(model.config.label2id) != set(self.names):
            raise UserError(
                f"task.teacher: its labels are {', '.join(sorted(model.config.label2id)[:10])}, those of the rows "
                f"{', '.join(self.names[:10])}. Train it on the same labels."
            )

    def remember(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the teacher's logits of each row, its labels in our order: [1, labels]."""
        order = [model.config.label2id[name] for name in self.names]
        return model(**batch.inputs).logits.float()[:, order].split(1)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities, or the value."""
        if self.kind == "single":
            return logits.softmax(-1)
        return logits.sigmoid() if self.kind == "multi" else logits

    def score(self, model: Any, batch: Batch) -> Records:
        import torch

        logits = model(**batch.inputs).logits.float()
        labels = batch.targets["labels"]
        weights = batch.targets.get("weights", torch.ones_like(labels))
        losses = self._losses(logits, batch.targets)
        return {
            "scores": self._scores(logits).cpu().numpy(),
            "label": labels.cpu().numpy(),
            "loss": losses.reshape(len(labels), -1).sum(1).cpu().numpy(),
            "weight": weights.reshape(len(labels), -1).sum(1).cpu().numpy(),
        }

    def _thresholds(self) -> np.ndarray:
        """Return from which probability each label is given."""
        chosen = self.facts.get("thresholds") if self.settings.threshold is None else None
        return np.array(chosen or [self.settings.threshold or 0.5] * len(self.names))

    def decide(self, records: Records) -> dict[str, Any]:
        """Return the threshold of each label with the best F1, midway between two probabilities that occur."""
        if self.kind != "multi" or self.settings.threshold is not None:
            return {}
        return {
            "thresholds": [_best_threshold(p, y) for p, y in zip(records["scores"].T, records["label"].T, strict=True)]
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """Loss (weighted as in training) and what judges this kind of labels.

        One label: accuracy, macro F1, Matthews correlation, expected calibration error (10 bins). Several: macro and
        micro F1, and the share of rows with all labels right. Numbers: mean absolute error and correlations.
        """
        loss = {"loss": float(records["loss"].sum() / max(records["weight"].sum(), 1e-12))}
        if self.kind == "single":
            return loss | single_label_metrics(records)
        if self.kind == "multi":
            return loss | _multi_metrics(records["scores"] >= self._thresholds(), records["label"] == 1)
        return loss | _number_metrics(records["scores"][:, 0], records["label"][:, 0])

    def figures(self, records: Records) -> list[dict[str, Any]]:
        if self.kind == "single":
            return self._single_figures(records)
        if self.kind == "multi":
            given, true, thresholds = records["scores"] >= self._thresholds(), records["label"] == 1, self._thresholds()
            rows = [
                [name, int(true[:, i].sum()), float(thresholds[i]), *_precision_recall_f1(given[:, i], true[:, i])]
                for i, name in enumerate(self.names)
            ]
            columns = ["label", "rows", "threshold", "precision", "recall", "F1"]
            return [{"kind": "table", "title": "Labels", "columns": columns, "rows": rows}]
        found, true = records["scores"][:, 0], records["label"][:, 0]
        worst = np.argsort(-np.abs(found - true))[:10]
        rows = [[f"row {i}", float(true[i]), float(found[i]), float(found[i] - true[i])] for i in worst.tolist()]
        columns = ["", "true", "predicted", "error"]
        return [{"kind": "table", "title": "Largest errors", "columns": columns, "rows": rows}]

    def _single_figures(self, records: Records) -> list[dict[str, Any]]:
        scores, labels = records["scores"], records["label"]
        predicted, confidence = scores.argmax(1), scores.max(1)
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
        if len(self.names) <= 50:
            values = confusion(records).tolist()
            figures.insert(0, {"kind": "matrix", "title": "Confusion matrix", "labels": self.names, "values": values})
        return figures

    def said(self, target: np.ndarray) -> str:
        """Return an example's target in words."""
        if self.kind == "regression":
            return f"{float(target[0]):g}"
        chosen = target if self.kind == "single" else np.flatnonzero(target)
        return ", ".join(self.names[int(number)] for number in chosen) or "none"

    @property
    def nothing(self) -> np.ndarray:
        """The label of an example that has none."""
        return np.zeros(1 if self.kind != "multi" else len(self.names))

    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        """Return what is said of one row.

        Args:
            logits: float32 [labels].
        """
        row = self._scores(logits).cpu().tolist()
        if self.kind == "regression":
            return {"value": round(row[0], 6)}
        scores = {name: round(value, 6) for name, value in zip(self.names, row, strict=True)}
        if self.kind == "multi":
            given = [name for name, value, t in zip(self.names, row, self._thresholds(), strict=True) if value >= t]
            return {"labels": given, "scores": scores}
        best = max(range(len(row)), key=row.__getitem__)
        return {"label": self.names[best], "score": round(row[best], 6), "scores": scores}


def _kind(rows: Iterable[Row], settings: ClassificationSettings) -> str:
    """Return the kind of labels that the settings or the rows say."""
    if settings.kind != "auto":
        return settings.kind
    if settings.separator is not None:
        return "multi"
    fractions = False
    for row in rows:
        value = row.values["label"]
        if isinstance(value, list | tuple):
            return "multi"
        try:
            fractions = fractions or not float(value).is_integer()
        except (TypeError, ValueError):
            return "single"
    return "regression" if fractions else "single"


def _number(row: Row) -> float:
    try:
        value = float(row.values["label"])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(
            f"{row.where}: the label {row.values['label']!r} is no number. Give one, or --task.kind single."
        )
    return value


def _labels(row: Row, kind: str, separator: str | None) -> list[str]:
    """Return the labels of a row as text: `1`, `1.0` read from one file and `"1"` from another are the same label."""
    value = row.values["label"]
    if kind == "single":
        if isinstance(value, list | tuple | dict):
            raise UserError(f"{row.where}: the label {value!r} is not one label. Give --task.kind multi.")
        return [_text(value)]
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    elif not isinstance(value, list | tuple):
        value = [value]
    return list(dict.fromkeys(name for name in map(_text, value) if name))


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def label_name(row: Row) -> str:
    """Return the one label of a row as text."""
    return _labels(row, "single", None)[0]


def single_label_metrics(records: Records) -> dict[str, float]:
    """Return the metrics of `scores` (logits [rows, labels]) and `label` ([rows]); see `Classification.metrics`."""
    import torch
    from torchmetrics.functional import classification as measure

    scores, labels = torch.from_numpy(records["scores"]), torch.from_numpy(records["label"]).long()
    classes = scores.shape[1]
    return {
        "accuracy": float(measure.multiclass_accuracy(scores, labels, classes, average="micro")),
        "macro_f1": float(measure.multiclass_f1_score(scores, labels, classes, average="macro")),
        "matthews": _matthews(confusion(records)),
        "calibration_error": float(measure.multiclass_calibration_error(scores, labels, classes, n_bins=_BINS)),
    }


def _multi_metrics(given: np.ndarray, true: np.ndarray) -> dict[str, float]:
    by_label = [_precision_recall_f1(given[:, i], true[:, i])[2] for i in range(true.shape[1])]
    return {
        "macro_f1": float(np.mean(by_label)),
        "micro_f1": _precision_recall_f1(given.ravel(), true.ravel())[2],
        "exact_match": float((given == true).all(1).mean()),
    }


def _precision_recall_f1(given: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    both, all_given, all_true = float((given & true).sum()), float(given.sum()), float(true.sum())
    whole = all_given + all_true
    return (
        both / all_given if all_given else 0.0,
        both / all_true if all_true else 0.0,
        2 * both / whole if whole else 0.0,
    )


def _best_threshold(scores: np.ndarray, true: np.ndarray) -> float:
    """Return the probability from which a label is best given, by F1; 0.5 where no row has the label."""
    order = np.argsort(-scores, kind="stable")
    hits, given = np.cumsum(true[order] == 1), np.arange(1, len(order) + 1)
    f1 = 2 * hits / (given + max(1.0, float(true.sum())))
    ordered = scores[order].astype(float)
    ends = np.append(ordered[1:] < ordered[:-1], True)  # rows with one probability are given together
    best = int(np.argmax(np.where(ends, f1, -1.0)))
    if not true.any():
        return 0.5
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float((ordered[best] + below) / 2)


def _number_metrics(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

    correlations = {"pearson": 0.0, "spearman": 0.0}  # where one side never varies there is none
    if len(true) > 1 and np.ptp(found) > 0 and np.ptp(true) > 0:
        pair = torch.from_numpy(found).double(), torch.from_numpy(true).double()
        correlations = {"pearson": float(pearson_corrcoef(*pair)), "spearman": float(spearman_corrcoef(*pair))}
    return {"mean_absolute_error": float(np.abs(found - true).mean()), **correlations}


def confusion(records: Records) -> np.ndarray:
    """Return how often each label (row) was predicted as each (column)."""
    classes = records["scores"].shape[1]
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (records["label"], records["scores"].argmax(1)), 1)
    return matrix


def _matthews(matrix: np.ndarray) -> float:
    """Return the correlation of labels and predictions; 0 where one of them never varies (torchmetrics 1.9 gives noise).

    Source: Gorodkin 2004, equation 8.
    """
    true, predicted, total = matrix.sum(1).astype(float), matrix.sum(0).astype(float), float(matrix.sum())
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum())
    return float((matrix.trace() * total - true @ predicted) / spread**0.5) if spread > 0 else 0.0
