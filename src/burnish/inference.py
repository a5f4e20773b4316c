"""A trained model put to use: predictions and evaluation of a run, a model folder or a Hub id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from burnish.config import Config, ModelSettings, config_class, merge, normalise, parse, read_recipe
from burnish.data.media import Medium
from burnish.data.new_tokens import beginnings
from burnish.data.prepare import Splits, encode, find_rows, read_rows
from burnish.data.reader import content_of, load_reader
from burnish.data.rows import checked_input
from burnish.data.store import Store
from burnish.engine.frozen import Asked, opened
from burnish.env import fingerprint
from burnish.errors import UserError
from burnish.evaluate.measure import intervals, score, sound_metrics
from burnish.models.begin import first_model
from burnish.models.load import build, make_config
from burnish.models.precision import round_to_bf16
from burnish.models.source import model_folder, read_config
from burnish.models.stack import Stack
from burnish.plan.derive import choose_device, choose_precision, choose_sequence
from burnish.run import RunFolder, home_path
from burnish.task import Row, Task, find_task, registry
from burnish.terminal import Terminal
from burnish.units import readable_count

#: A seed of sampling is less.
MOST_SEED = 2**63


class Opened:
    """A model with the task it was trained for.

    Args:
        target: run folder, model folder or Hub id.
        task: the task's name, needed where neither a run nor the model's architecture says it, or settings of its group.
        settings: groups of settings over the run's.

    Raises:
        UserError: the target holds no model, or its task cannot be told.
    """

    def __init__(
        self, target: str, task: str | Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ):
        import torch

        self.target = target
        self._written: set[Path] = set()
        run = RunFolder(home_path(target))
        self.run = run if run.is_run else None
        stored: dict[str, Any] = read_recipe(run.config) if run.is_run else {}
        overrides = merge(normalise(settings or {}), normalise({"task": task or {}}))
        revision = (overrides.get("model") or {}).get("revision")
        self.folder = folder = model_folder(target, revision)
        told = overrides["task"].get("name") or (stored.get("task") or {}).get("name")
        name = told or _task_of(folder)
        self._guessed = told is None
        self.task_class: type[Task] = find_task(name)
        values = merge(stored, overrides, {"task": {"name": name}})
        self._began: dict[str, Any] = values.get("model") or {}
        values["model"] = {"path": str(folder)}
        self.config: Config = parse(values, config_class(self.task_class.Settings), "settings")
        self.device = choose_device(self.config)[0]
        asked = (overrides.get("train") or {}).get("precision")
        self.precision = asked or self._stored("precision") or choose_precision(self.config, self.device)[0]
        if self._stored("threads") and self.config.run.threads is None:
            torch.set_num_threads(self._stored("threads"))
        model_config = make_config(folder, {}, None)
        self.task_class = self.task_class.suited(model_config, self.config.task)
        self.model, loaded = build(self.task_class.auto_class, model_config, folder)
        if loaded.new:
            raise UserError(
                f"{target}: has no trained layer for {name} ({len(loaded.new)} tensors would be new). Train it first: "
                f"burnish train {name} --model {target} --data.train ..."
            )
        self.model.to(self.device).eval()
        self.stack = None
        if self.run and self._stored("arrangement") == "packed":  # tried when the run began
            self.stack = Stack(self.model)
            self.stack.packed, self.stack.reads = True, self._stored("reads")
        self.task = self.task_class(self.config.task, load_reader(self.task_class, folder), self._facts(model_config))
        self.task.check(self.model)
        if self.precision == "bf16":
            round_to_bf16(self.model)

    def _stored(self, name: str) -> Any:
        return self.run.read_json(self.run.plan)[name] if self.run else None

    def _facts(self, model_config: Any) -> dict[str, Any]:
        if self.run:
            decided = self.run.read_json(self.run.metrics).get("decided", {}) if self.run.is_finished else {}
            return {**self._stored("facts"), **decided}
        labels = [model_config.id2label[index] for index in range(len(model_config.id2label))]
        return {"labels": labels, "strict": False}  # how tags followed each other in its training is not known

    @property
    def asks(self) -> dict[str, str]:
        """The columns a prediction needs: the task's names, to the names in files."""
        return self.task.asked_columns(self.config.data)

    def predict(self, asked: Sequence[Any], generate: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
        """Return the task's answer to each input, in order.

        Args:
            asked: the columns in `asks`, or a value for the first of them: text, path, pixels, samples or an image of PIL's.

        Raises:
            UserError: an empty text, a missing column, or a wrong setting of generation.
        """
        inputs = []
        for number, given in enumerate(asked, 1):
            if not isinstance(given, Mapping) and len(self.asks) > 1:
                raise UserError(f"Input {number} is one value; give its columns {', '.join(self.asks.values())}.")
            values = dict(given) if isinstance(given, Mapping) else {next(iter(self.asks)): given}
            if isinstance(given, str) and not given.strip():
                if self.task_class.name != "text-generation":
                    raise UserError(f"Text {number} is empty; give some text.")
                inputs.append(values)
                continue
            whole = self.asks.keys() <= values.keys() and self.task_class.reads == "text"
            inputs.append(values if whole else checked_input(values, self.asks, f"Input {number}"))
        if abs(seed) >= MOST_SEED:
            raise UserError(f"seed: {seed} is too large; give a whole number of less than {MOST_SEED:,}.")
        given = merge(self.config.model_dump(), {"generate": dict(generate)})
        config = parse(given, type(self.config), "settings")
        return self.task.predict(self.model, inputs, config.generate, seed)

    def refuse_overwriting(self, asked: Sequence[Mapping[str, Any]], folder: Path) -> None:
        """Refuse a folder for pictures that holds what is asked about.

        Raises:
            UserError: names the folder.
        """
        media = (value.content for one in asked for value in one.values() if isinstance(value, Medium))
        if any(isinstance(file, Path) and file.resolve().parent == folder.resolve() for file in media):
            raise UserError(
                f"--pictures: {folder} holds images that are asked about; give another folder, or they would be lost."
            )

    def draw(self, asked: Mapping[str, Any], answer: Mapping[str, Any], folder: Path) -> Path:
        """Write an image into a folder, its answer drawn on it, and return its file.

        Raises:
            UserError: the task's answers cannot be drawn, or the file not be written.
        """
        found = self.task.illustrated(asked, answer)
        if found is None:
            raise UserError(f"--pictures: what {self.task.name} answers is not drawn on images. Leave it out.")
        from PIL import Image

        stem = Path(answer["image"]).stem
        names = chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in count(2)))
        file = next(folder / name for name in names if folder / name not in self._written)
        self._written.add(file)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found).save(file)
        except OSError as error:
            raise UserError(f"--pictures: {file} cannot be written ({error.strerror}).") from error
        return file

    def evaluate(self, data: str | Sequence[str] | None, terminal: Terminal) -> dict[str, Any]:
        """Return metrics and intervals on rows; by default the run's own test rows, or its validation rows.

        Raises:
            UserError: no rows, or rows the model cannot be judged on.
        """
        config, split = self.config, "test"
        if self._guessed:
            terminal.say(f"{self.target}: by its architecture a model for {self.task.name}; --task names another task")
        names: tuple[str, ...] = ()
        if data is not None:
            names = (data,) if isinstance(data, str) else tuple(data)
            rows, _ = read_rows(names, "data.test", config, self.task_class)
            splits = Splits(test=rows, fingerprint=fingerprint(rows.fingerprint()))
            self._learn(rows)
        elif self.run is None:
            raise UserError(f"{self.target}: give the rows to evaluate on, such as --data.test reviews.csv.")
        else:
            found = find_rows(config, self.task_class)
            split = "test" if found.test is not None else "validation"
            splits = Splits(test=getattr(found, split), fingerprint=f"{found.fingerprint} {split}")
        if splits.test is None:
            raise UserError("data.test: the run has neither test nor validation rows; give --data.test.")
        sequence = self._stored("sequence") or choose_sequence(config, self.task, self.model.config)[0]
        content = content_of(self.task_class, self.task.tokenizer)
        store = encode(config, self.task, splits, sequence, content, terminal)["test"]
        self._ask_frozen(store)
        with terminal.progress("evaluating", len(store)):
            records = score(
                self.model,
                self.task,
                store,
                batch=32,
                device=self.device,
                stack=self.stack,
                progress=lambda done: terminal.advance(done),
            )
        metrics = sound_metrics(self.task, records)
        ranges = intervals(self.task, records)
        terminal.facts(
            f"{self.target}: {self.task.name} on {readable_count(len(store))} examples",
            [
                (name, f"{value:.4f}", f"95 % interval {ranges[name][0]:.4f} to {ranges[name][1]:.4f}")
                for name, value in metrics.items()
            ],
        )
        return {
            "target": self.target,
            "task": self.task.name,
            "data": list(names) or split,
            "examples": len(store),
            "metrics": metrics,
            "intervals": ranges,
        }

    def _learn(self, rows: Iterable[Row]) -> None:
        """Let these rows say what a run knows of its training rows, such as that they are conversations."""
        if self.run is None:
            facts = {**self.task_class.learn(rows, self.config.task), **self.task.facts}
            self.task = self.task_class(self.config.task, self.task.tokenizer, facts)
            self.task.check(self.model)

    def _ask_frozen(self, store: Store) -> None:
        """Let the frozen model that the task asks answer every row.

        Raises:
            UserError: it cannot be had.
        """
        asked = self.task.frozen_model()
        if asked is None or not asked.scores:
            return
        if asked.path is None and self.run is None:
            raise UserError(f"{asked.setting}: only a run knows the model it began with; give --{asked.setting} PATH.")
        model = opened(asked, self.task, self._first_model, self.device, self.config)
        frozen = Asked(model, asked, self.task, store, self.device)
        stored = self._stored("frozen") if self.run else None
        frozen.settle(self.config.train.packing, stored["precision"] if stored else self.precision)
        frozen.remember({"test": store}, lambda done: None)

    def _first_model(self) -> Any:
        """Return the model that the run began with."""
        path = self._began.get("path")
        source = model_folder(path, self._began.get("revision")) if path else None
        began = beginnings(self.task.tokenizer, self.config.model_copy(update={"model": ModelSettings(**self._began)}))
        given = make_config(self.folder, {}, None), self.config.run.seed, source, None, began
        return first_model(self.task_class.auto_class, *given)[0]


def _task_of(folder: Path) -> str:
    """Return the task whose head the model in a folder has."""
    from transformers.models.auto import modeling_auto

    from burnish.models import own

    names = {
        "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
        "AutoModelForAudioClassification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForCTC": modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
        "AutoModelForSpeechSeq2Seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForObjectDetection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForSemanticSegmentation": {
            **modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
            **modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,  # one task does both
        },
        "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    architectures = read_config(folder).get("architectures") or []
    for task in registry().values():
        heads = (task.auto_class, *task.auto_classes)
        known = {one for head in heads for one in [*names.get(head, {}).values(), *own.HEADS.get(head, [])]}
        if task.opens_by_default and known & set(architectures):
            return task.name
    raise UserError(f"{folder}: its architecture {architectures} names no task; give --task ({', '.join(registry())}).")


def open_model(
    target: str, task: str | Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
) -> Opened:
    """Return a run, model folder or Hub id, opened for use."""
    return Opened(target, task, settings)
