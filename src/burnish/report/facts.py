"""What page and card both tell: the files of a run, read once, and the words for its figures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import yaml

from burnish.config import Config, parse
from burnish.errors import UserError
from burnish.run import RunFolder
from burnish.task import unit_of
from burnish.units import readable_bytes

#: Metric to its name in words and what it says, in one line.
METRICS = {
    "loss": (
        "loss",
        "What training lowers: a mean per target (cross-entropy: in nats); of several parts, their sum. Lower is better.",
    ),
    "perplexity": (
        "perplexity",
        "e to the power of the loss: as unsure as choosing evenly among this many tokens. Lower is better.",
    ),
    "bits_per_byte": (
        "bits per byte",
        "Bits it takes to write down one byte of the text; comparable across tokenizers. Lower is better.",
    ),
    "wer": (
        "word error rate",
        "Words to be changed, left out or put in, over all words that are said: 0 is none. Lower is better.",
    ),
    "cer": (
        "character error rate",
        "Characters to be changed, left out or put in, over all that are said: 0 is none. Lower is better.",
    ),
    "mel_error": (
        "mel error",
        "Mean absolute error of a log10-mel of the spectrum, told the true durations or the frames before. Lower is better.",
    ),
    "end_error": (
        "end error",
        "Mean cross-entropy, in nats, of whether the sound ends at a frame, told the frames before; the one where it does "
        "counts five times. Lower is better.",
    ),
    "duration_error": ("duration error", "Mean absolute error of a character's duration, in seconds. Lower is better."),
    "accuracy": ("accuracy", "Share of rows, words or pairs that are judged right. Higher is better."),
    "top5_accuracy": (
        "accuracy of the first five",
        "Share of rows whose label is among the five likeliest. Higher is better.",
    ),
    "map": (
        "mean average precision",
        "COCO's: mean over categories and over overlaps of 0.5 to 0.95 with the true boxes, 0 to 1. Higher is better.",
    ),
    "map_50": (
        "average precision at 0.5",
        "Mean over categories, where half of box and true box is shared. Higher is better.",
    ),
    "map_75": ("average precision at 0.75", "The same, where three quarters are. Higher is better."),
    "mean_recall": ("mean recall", "Share of the true boxes that are found, over the same overlaps. Higher is better."),
    "panoptic_quality": (
        "panoptic quality",
        "Mean over classes of segmentation quality times recognition quality (Kirillov et al. 2019). Higher is better.",
    ),
    "segmentation_quality": (
        "segmentation quality",
        "Mean intersection over union of the segments that are found. Higher is better.",
    ),
    "recognition_quality": ("recognition quality", "F1 of the segments that are found. Higher is better."),
    "mean_iou": (
        "mean IoU",
        "Pixels of a class that are found, over those that are found or there; mean over classes. Higher is better.",
    ),
    "mean_dice": ("mean Dice", "The same counted as F1 of the pixels of each class. Higher is better."),
    "pixel_accuracy": ("pixel accuracy", "Share of pixels that are judged right. Higher is better."),
    "macro_f1": (
        "macro F1",
        "Mean over the labels of F1, the balance of precision and recall; a rare label counts as much as a common one. "
        "Higher is better.",
    ),
    "micro_f1": ("micro F1", "F1 of all labels of all rows counted together. Higher is better."),
    "exact_match": ("exact match", "Share of rows that are right in every part. Higher is better."),
    "mean_absolute_error": (
        "mean absolute error",
        "Mean distance of the predicted value from the true one. Lower is better.",
    ),
    "pearson": ("Pearson correlation", "How nearly predicted and true values lie on a line: 1 is perfect, 0 is none."),
    "spearman": (
        "Spearman correlation",
        "How nearly predictions have the order of the true values: 1 is perfect, 0 is none.",
    ),
    "f1": ("F1", "Balance of precision and recall. Higher is better."),
    "precision": ("precision", "Share of what was found that is right. Higher is better."),
    "recall": ("recall", "Share of what is there that was found. Higher is better."),
    "matthews": (
        "Matthews correlation",
        "Correlation of predicted and true labels, fair to uneven labels: 1 is perfect, 0 is guessing.",
    ),
    "margin": (
        "margin",
        "By how much the better answer's reward lies above the other's, on average. Above 0 is right; higher is surer.",
    ),
    "mrr": (
        "mean reciprocal rank",
        "Mean of one over the place at which an anchor finds its positive: 1 is always first. Higher is better.",
    ),
    "recall_at_1": ("recall at 1", "Share of anchors that find their positive first. Higher is better."),
    "rouge1": ("ROUGE-1", "Words that the answer shares with the reference, 0 to 1. Higher is better."),
    "rouge2": ("ROUGE-2", "Pairs of neighbouring words that it shares, 0 to 1. Higher is better."),
    "rougeL": ("ROUGE-L", "The longest sequence of words that it shares, 0 to 1. Higher is better."),
    "chrf": ("chrF", "Stretches of characters that the answer shares with the reference, 0 to 100. Higher is better."),
    "bleu": ("BLEU", "Stretches of words that it shares, 0 to 100. Higher is better."),
    "pseudo_perplexity": (
        "pseudo-perplexity",
        "As perplexity, where each token in turn is hidden and guessed from all others. Lower is better.",
    ),
    "calibration_error": (
        "calibration error",
        "Mean gap between how sure the model is and how often it is right (10 bins). Lower is better.",
    ),
}


@dataclass(frozen=True)
class Facts:
    """What is known of a run."""

    folder: RunFolder
    plan: dict[str, Any]
    environment: dict[str, Any]
    recipe: str
    config: Config
    task: str
    metrics: dict[str, Any]
    figures: list[dict[str, Any]]
    log: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.path.name or self.folder.path.resolve().name

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of training steps, in order; of a step that was done again after going back, the last one."""
        return _by_step(line for line in self.log if "evaluation" not in line)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations on the way, in order."""
        return _by_step(line for line in self.log if "evaluation" in line)

    @cached_property
    def skipped(self) -> list[dict[str, Any]]:
        """The lines of steps that made no update, for their loss or gradient was not finite."""
        return [line for line in self.steps if line.get("loss") is None or line.get("grad_norm") is None]

    @property
    def last_step(self) -> int:
        """The last step that was trained, as far as the log tells."""
        lines = [*self.steps[-1:], *self.evaluations[-1:]]
        return max([self.metrics.get("step", 0), *(line["step"] for line in lines)])

    @property
    def status(self) -> str:
        """How the run ended, in words."""
        total = self.plan["total_steps"]
        if not self.metrics:
            return f"not finished: {self.last_step:,} of {total:,} steps"
        if self.last_step < total:
            return f"finished early, after {self.last_step:,} of {total:,} steps"
        return f"finished, {total:,} steps"

    @property
    def origin(self) -> str:
        """Where the weights came from, in words."""
        model = self.config.model
        revision = f" (revision {model.revision})" if model.revision else ""
        return f"fine-tuned from {model.path}{revision}" if model.path else f"from scratch, preset {model.preset}"

    @property
    def splits(self) -> list[str]:
        """The splits that were measured at the end."""
        return [split for split in ("validation", "test") if self.metrics.get(split)]

    @property
    def metric_names(self) -> list[str]:
        """Every metric of any split, the one by which checkpoints are compared first."""
        found = dict.fromkeys(name for split in self.splits for name in self.metrics[split])
        return sorted(found, key=lambda name: name != self.plan["best"])

    @property
    def target_word(self) -> str:
        """What the loss counts: rows where each has one target, tokens of running text, targets of anything else."""
        if self.task == "text-generation":
            return "tokens"
        return "rows" if all(line.get("targets") == line.get("rows") for line in self.steps) else "targets"

    @property
    def unit(self) -> str:
        """What the positions of its rows are called, such as tokens."""
        return unit_of(self.task, self.plan["sequence"])

    @property
    def epochs(self) -> float | None:
        """How often the run went through the training rows."""
        return self.steps[-1].get("epoch") if self.steps else None

    def interval(self, split: str, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a metric, if it was measured."""
        edges = self.metrics.get("intervals", {}).get(split, {}).get(name)
        return (edges[0], edges[1]) if edges else None


def read_facts(folder: RunFolder) -> Facts:
    """Return what the files of a run say; a run that is not finished has no figures yet.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        recipe = folder.config.read_text(encoding="utf-8")
        values = yaml.safe_load(recipe)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder.config}: cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder.config}: holds no settings.")
    task = values.pop("task", None) or {}  # its settings are the task's own, of which the report knows nothing
    found = folder.read_json(folder.figures) if folder.figures.is_file() else {"metrics": {}, "figures": []}
    return Facts(
        folder=folder,
        plan=folder.read_json(folder.plan),
        environment=folder.read_json(folder.environment),
        recipe=recipe,
        config=parse(values, Config, str(folder.config)),
        task=found["metrics"].get("task") or task.get("name", ""),
        metrics=found["metrics"],
        figures=found["figures"],
        log=folder.log_lines(),
    )


def broken_rows(folder: RunFolder, most: int) -> list[dict[str, str]]:
    """Return the first `most` rows that were left out, each with `where` and `reason`."""
    if not folder.rejects.is_file():
        return []
    with open(folder.rejects, encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(most), strict=False)]


def environment_rows(facts: Facts) -> list[tuple[str, str]]:
    """Return name and value of what the run ran on: device, machine, and every version a result can depend on."""
    environment = facts.environment
    machine = environment["machine"]
    return [
        ("device", f"{environment['device']}, {environment['threads']} threads"),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {readable_bytes(machine['memory_bytes'])}"),
        ("system", machine["system"]),
        *environment["versions"].items(),
    ]


def _by_step(lines: Any) -> list[dict[str, Any]]:
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def metric_words(name: str) -> str:
    """Return the name of a metric in words: `metric_words("macro_f1")` is `"macro F1"`."""
    return METRICS.get(name, (name.replace("_", " "), ""))[0]


def metric_sense(name: str) -> str:
    """Return what a metric says in one line, or nothing for one that the report does not know."""
    return METRICS.get(name, ("", ""))[1]


def number(value: float | None) -> str:
    """Return a measured number as people read it, four digits of it; a dash for none.

    >>> number(338.8769), number(0.93466), number(0.0000123), number(None)
    ('338.9', '0.9347', '1.23e-5', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.{min(4, max(0, 3 - math.floor(math.log10(abs(value) or 1))))}f}"


def time_words(seconds: float) -> str:
    """Return a time span in words: `time_words(3725)` is `"1 h 2 min"`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def template(name: str, **options: Any) -> jinja2.Template:
    """Return the template of this name, which lies beside the code.

    Args:
        options: of jinja2's environment, such as `autoescape`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
    environment.filters |= {"number": number, "metric_words": metric_words, "metric_sense": metric_sense}
    return environment.get_template(name)
