"""The seam between tasks and engine.

A task says what one batch is and what its loss is. It never sees the optimizer, the devices, the step or the rank. The
engine never sees a label or a token. All that passes between them is in this file.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from burnish.config import (
    AugmentSettings,
    DataSettings,
    GenerateSettings,
    TaskSettings,
    TaughtSettings,
    refuse_unused,
)
from burnish.errors import unknown

if TYPE_CHECKING:
    import numpy as np
    import torch

Example = dict[str, "np.ndarray"]
"""One encoded example: named 1-D arrays. Its length is that of the field `input_ids`; of an image or a sound it is
the number `positions`."""

Records = dict[str, "np.ndarray"]
"""What evaluation keeps: named arrays with one entry per example, from which every metric is computed."""


@dataclass(frozen=True)
class FrozenModel:
    """A model that a task asks and never trains, such as the reference of preference tuning, or a teacher."""

    path: str | None
    """A Hub id, a folder or a burnish run; None: the run's own model as it is before the first step."""
    setting: str
    """What names it, such as `task.teacher`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its answers depend on beside itself and the rows (JSON-able)."""
    scores: bool = True
    """Whether `score` needs its answers too; else only training rows are asked about."""


@dataclass(frozen=True)
class Row:
    """One row of a source, before the task has seen it."""

    values: Mapping[str, Any]
    where: str
    """File and line, such as `reviews.csv:12`."""
    document: str | None = None
    """Rows that follow each other with the same document belong to one text; None: a text of its own."""


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be used, and why."""

    where: str
    reason: str


@dataclass
class Batch:
    """What a task computes at once: tensors for the model, tensors for the loss, and how much each loss term counts."""

    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    weights: dict[str, float]
    """Loss term to the number of targets it sums over, counted when the batch is made; the log shows the first term's."""
    lengths: list[int] | None = None
    """Positions of each row of the inputs, where they are padded on the right; None: the model decides how many there are.
    An example may be several rows, each the same number of them, one after another."""
    rows: list[int] = field(default_factory=list)
    """Index of each example in its store."""
    prefix: torch.Tensor | None = None
    """What the model's frozen layers give for these rows, laid end to end, if it is known already."""

    idle: bool = False
    """Whether the batch is computed only to keep step with other processes, and counts nothing."""

    def to(self, device: str) -> Batch:
        """Return the batch with its tensors on `device`; they are made on the processor."""
        if device == "cpu":
            return self
        move = lambda tensors: {name: value.to(device, non_blocking=True) for name, value in tensors.items()}  # noqa: E731
        prefix = None if self.prefix is None else self.prefix.to(device, non_blocking=True)
        return replace(self, inputs=move(self.inputs), targets=move(self.targets), prefix=prefix)


class Task(ABC):
    """What is learned. A new task is one file in `burnish/tasks` with a subclass of this.

    Args:
        settings: the `task` group of the recipe, of the task's own `Settings` class.
        tokenizer: the model's reader: its tokenizer, image processor or feature extractor, or the last with a tokenizer.
        facts: what `learn` found in the training rows (JSON-able; stored with the run).
    """

    name: ClassVar[str]
    """The Hub's pipeline tag."""
    version: ClassVar[int] = 1
    """Raised when `encode` changes, so that rows encoded by older code are not reused."""
    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    auto_class: ClassVar[str]
    """The transformers Auto class that adds this task's head to a backbone."""
    reads: ClassVar[Literal["text", "images", "audio"]] = "text"
    """What its rows are: text that a tokenizer reads, images that an image processor does, or sounds that a feature
    extractor does."""
    writes: ClassVar[bool] = False
    """Whether sounds are said in text, or text in sounds, so that its reader has a tokenizer too."""
    ends: ClassVar[bool] = False
    """Whether a text that it writes ends with a token."""
    auto_classes: ClassVar[tuple[str, ...]] = ()
    """Others that do this task too, by `suited`."""
    augment: AugmentSettings = AugmentSettings()
    """How training varies images and sounds; set by the engine."""
    opens_by_default: ClassVar[bool] = True
    """Whether a model folder with this head, and no run around it, is taken to be for this task."""
    metric_names: tuple[str, ...]
    """What `metrics` returns; the first is the one by which checkpoints are compared when the user names none. A task
    whose settings change what is measured sets its own."""
    lower_is_better: frozenset[str] = frozenset({"loss"})

    asks: ClassVar[tuple[str, ...]] = ("text",)
    """The columns a prediction needs, of those in `columns`; the first may be given alone, as plain text."""
    use_settings: ClassVar[str] = ""
    """Settings of `burnish predict`, after a blank, without which what it answers cannot be looked at or heard."""
    takes_prompt: ClassVar[bool] = False
    """Whether the virtual tokens of `adapter.kind: prompt` can stand before its texts (`burnish.data.new_tokens`)."""
    special_tokens: ClassVar[dict[str, str]] = {}
    """What a tokenizer that is trained for this task has beside the end of a text, by transformers' names."""

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        self.settings: Any = settings  # of the task's own `Settings` class
        self.tokenizer, self.facts = tokenizer, facts
        if isinstance(settings, TaughtSettings) and settings.teacher is None:
            teaching = [name for name in type(settings).model_fields if name.startswith("teacher_")]
            refuse_unused("task", settings, teaching, "there is no teacher. Give --task.teacher, or leave it out.")

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        """Return the task as a model of this config does it: itself, where one kind of model can.

        Args:
            config: transformers' own.
            settings: the `task` group of the recipe.

        Raises:
            UserError: the settings ask for what such a model cannot do.
        """
        return cls

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        """Return the columns a row must have: the name the task uses, to the name in the user's data.

        Rows with the same first column are never on both sides of a held-out split.
        """
        return {"text": data.text}

    def asked_columns(self, data: DataSettings) -> dict[str, str]:
        """Return the columns a prediction needs: the name the task uses, to the name in the user's data."""
        columns = self.columns(data)
        return {name: columns[name] for name in self.asks if name in columns} or {"text": data.text}

    @classmethod
    @abstractmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Return what must be known of all training rows before any can be encoded, such as the label names.

        Args:
            settings: the `task` group of the recipe.
        """

    def cuts_long_rows(self) -> bool:
        """Return whether `encode` drops what does not fit into `sequence`; the plan then says how many rows reach it.

        Examples of several rows say it themselves, by a feature `cut`.
        """
        return False

    def model_options(self) -> dict[str, Any]:
        """Return settings for the model's config, such as its number of labels."""
        return {}

    def check(self, model: Any) -> None:  # noqa: B027  (most tasks take any model their Auto class gives)
        """Try a built model before the run begins.

        Raises:
            UserError: it cannot do this task, though it has the head.
        """

    @abstractmethod
    def encode(
        self, rows: Iterable[Row], sequence: int, *, training: bool
    ) -> Iterator[tuple[Example, str] | BrokenRow]:
        """Yield examples of at most `sequence` positions, each with the place its (first) row came from.

        A row that only now turns out to be unusable, such as an image that ends too early, is yielded as broken.
        """

    @property
    def varies(self) -> bool:
        """Whether training sees a row otherwise each time."""
        return type(self).vary is not Task.vary

    @property
    def takes_next(self) -> bool:
        """Whether an example is varied by what comes next in its step, as in MixUp."""
        return False

    def vary(self, example: Example, draw: int, following: Example | None = None) -> Example:
        """Return the example as training sees it this time, such as with some tokens masked.

        Args:
            draw: 64 bits, a function of (seed, epoch, row) alone: all randomness of the task's own comes from it.
            following: the next example of the step, of the last one the first, for a task that `takes_next`.
        """
        return example

    def replayed(self, example: Example) -> Example:
        """Return the example without what only frozen layers read, for a batch that has what they give for it."""
        return example

    def frozen_model(self) -> FrozenModel | None:
        """Return the model whose answers the loss needs beside the batch, if there is one.

        It is asked about every example once, before training begins. What it answered is kept, and is the field
        `remembered` of the example: float32 [any number, width].
        """
        return None

    def remember(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return what is kept of the frozen model's answer to each example of a batch: float32 [any number, width].

        Args:
            model: in evaluation mode; nothing is differentiated.
            batch: of examples without `remembered`.
        """
        raise NotImplementedError(f"{self.name} asks no frozen model")

    def check_frozen(self, model: Any) -> None:  # noqa: B027  (most take any model of the task)
        """Look at the frozen model before it is asked.

        Raises:
            UserError: its answers do not fit this task's rows.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return the examples as one batch; `weights` count the targets of each loss term."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return each loss term's sum (not mean) over the targets of the batch, a scalar in float32."""

    @property
    def compares(self) -> bool:
        """Whether the loss compares the examples of a step with each other, as a `ComparingTask` can."""
        return False

    @abstractmethod
    def score(self, model: Any, batch: Batch) -> Records:
        """Return what `metrics` needs of each example of the batch; called without gradients, model in eval mode."""

    def write(self, model: Any, batch: Batch) -> Records:
        """Return what else `metrics` needs of each example: what the model writes, one token after another.

        Called as `score` is, but the rows are padded, never end to end.
        """
        return {}

    def join(self, records: Records) -> Records:
        """Return the records with those that belong together made one; called once all of an evaluation are there."""
        return records

    def decide(self, records: Records) -> dict[str, Any]:
        """Return facts chosen on the validation rows once training is done, such as thresholds (JSON-able)."""
        return {}

    @abstractmethod
    def metrics(self, records: Records) -> dict[str, float]:
        """Return the metrics over all examples."""

    def figures(self, records: Records) -> list[dict[str, Any]]:
        """Return what the report should draw of an evaluation (kinds: see `burnish.report`)."""
        return []

    def complete(self, folder: Path) -> None:  # noqa: B027  (most folders are complete)
        """Write what belongs into the exported model's folder beside weights and tokenizer."""

    @property
    def example_input(self) -> str:
        """What stands for an input where its use is shown."""
        return {"image": "photo.jpg", "audio": "speech.wav"}.get(self.asks[0], "...")

    def sight(self, model: Any) -> Any:
        """Return what a model on the meta device makes of the largest row (`burnish.models.vision.Sight`).

        None: its rows are text, of which `train.sequence` says how long they are.
        """
        return None

    def previews(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Return figures of some examples as training sees them."""
        return []

    def pictures(self, records: Records, example: Callable[[int], Example]) -> list[dict[str, Any]]:
        """Return figures of an evaluation that show rows, such as the worst errors.

        Args:
            example: returns what was evaluated, by its place among the records.
        """
        return []

    def samples(self, model: Any, settings: GenerateSettings) -> list[dict[str, Any]]:
        """Return figures that need the model, such as generated text."""
        return []

    @abstractmethod
    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        """Return one JSON-able answer per input, in order.

        Args:
            asked: the columns in `asks` of each input.
        """

    def illustrated(self, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> np.ndarray | None:
        """Return the image of an input with the answer drawn on it, uint8 [height, width, 3]; None: answers are not drawn."""
        return None


class ComparingTask(Task):
    """A task whose loss compares the examples of a step with each other, all with all.

    What the model makes of an example depends on that example alone, the loss on all of the global batch. The engine brings
    together what was made of all micro-batches on all ranks, so the loss does not depend on how the step was cut.
    """

    @property
    def compares(self) -> bool:
        return True

    @abstractmethod
    def represent(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return what the model makes of each example: float32 [examples, ...]."""

    @abstractmethod
    def compare(self, represented: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each loss term's sum over examples, a scalar in float32.

        Args:
            represented: what `represent` returned for all examples that are compared.
            targets: those of their batches, joined along the first dimension.
        """

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return each loss term's sum where the batch is all that is compared."""
        return self.compare(self.represent(model, batch), batch.targets)


def label_options(names: Sequence[str]) -> dict[str, Any]:
    """Return settings for a model's config that give it a class for each name, in this order."""
    numbers = {name: number for number, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}


def registry() -> dict[str, type[Task]]:
    """Return every task by name: the subclasses of `Task` found in the files of `burnish/tasks`."""
    return find_subclasses("burnish.tasks", Task)


def unit_of(task: str, sequence: int) -> str:
    """Return what the positions of a task's model are called, of which a row has at most so many."""
    reads = registry()[task].reads if task in registry() else "text"
    if reads == "images" and sequence == 1:
        return "images"  # a network of maps has no positions
    return {"images": "patches", "audio": "frames"}.get(reads, "tokens")


def find_task(name: str) -> type[Task]:
    """Return the task of this name. Only the file that has it is imported: all of them take a tenth of a second.

    Raises:
        UserError: there is none, with the nearest name.
    """
    folders = importlib.import_module("burnish.tasks").__path__
    for file in (file for folder in folders for file in sorted(Path(folder).glob("*.py"))):
        if f'name = "{name}"' in file.read_text(encoding="utf-8"):
            found = _subclasses_in(importlib.import_module(f"burnish.tasks.{file.stem}"), Task)
            if name in found:
                return found[name]
    raise unknown("task", name, registry())


def find_subclasses(package: str, base: type[Any]) -> dict[str, type[Any]]:
    """Return the named subclasses of `base` in the modules of `package`, by their `name`, in alphabetical order."""
    found: dict[str, type[Any]] = {}
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        found |= _subclasses_in(importlib.import_module(f"{package}.{module_info.name}"), base)
    return dict(sorted(found.items()))


def _subclasses_in(module: Any, base: type[Any]) -> dict[str, type[Any]]:
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    own = [value for value in classes if value.__module__ == module.__name__]
    return {value.name: value for value in own if getattr(value, "name", None)}
