"""All settings: one definition for code, `--help`, recipes, the reference pages and `RUN/config.yaml`.

A recipe is a YAML file of these groups. A group given a plain value sets its first field, so `model: gpt2` is
`model.path` and `data: reviews.csv` is `data.train`. Importing this module does not import torch.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
)

from burnish.errors import UserError, nearest
from burnish.units import DurationText, ShareText, SomeDurationText


def _to_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


def _cache_word(value: str) -> str:
    """Return where frozen layers are kept; `on`, `Off` and the like are words, not folders of that name."""
    if not value.strip():
        raise ValueError("is empty; give auto, off, or a folder")
    word = {"on": "auto", "true": "auto", "none": "off", "no": "off", "false": "off"}.get(value.lower(), value.lower())
    return word if word in ("auto", "off") else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_to_tuple)]


class Settings(BaseModel):
    """Base of every group: frozen, typed, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        """Refuse bytes that are no UTF-8, as a file's name may have: no recipe holds them."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text != text.encode(errors="ignore").decode():
                raise ValueError("holds bytes that are no UTF-8; give another name")
        return value


class TaskSettings(Settings):
    """What is learned. Each task may add settings of its own (`burnish train TASK --help`)."""

    name: str = ""
    """The task, by the Hub's pipeline tag: text-generation, text-classification, ..."""


class TaughtSettings(TaskSettings):
    """Settings of a task that may learn from another model's predictions beside the labels."""

    teacher: str | None = None
    """A trained model of the same task, tokenizer and labels to learn from: a Hub id, a folder or a run."""
    teacher_weight: float = Field(0.5, gt=0, le=1)
    """Share of the loss that is the distance from the teacher's predictions; the rest is that from the labels."""
    teacher_temperature: float = Field(2.0, gt=0)
    """Both predictions are softened by this before they are compared."""


class ModelSettings(Settings):
    """Which model is trained."""

    path: str | None = None
    """A pretrained model: a Hub id, a folder, or a burnish run."""
    preset: str | None = None
    """A model from scratch, by name and published size (`burnish info` lists them)."""
    revision: str | None = None
    """Commit, tag or branch of the Hub id."""
    tokenizer: str | None = None
    """Tokenizer folder or Hub id. Default: the model's own; from scratch, one is trained on the data."""
    vocab_size: int | None = Field(None, ge=257, le=2_000_000)
    """Size of the vocabulary of a model from scratch. Default: the preset's."""
    added_tokens: Texts = ()
    """Texts that a pretrained model's tokenizer shall read as one token each, exactly as they are written here."""
    context: int | None = Field(None, ge=2)
    """Positions a pretrained model shall have; its rotary angles are scaled to reach them."""
    rope: Literal["yarn", "linear"] | None = None
    """How: yarn scales the slow angles only, linear all of them. Default: yarn."""
    backbone: str | None = None
    """A pretrained backbone for a detector from scratch, with --preset: a Hub id or a folder."""
    image_size: int | None = Field(None, ge=8, le=4096)
    """Height and width in pixels to which images are brought. Default: the model's. A table of positions is stretched."""
    compute: float | None = Field(None, ge=1e12, le=1e27)
    """Floating-point operations that may be spent on a model from scratch (1e15). Layers, width, heads, batch, learning
    rate and length follow from it, for the family of the preset; what is given besides stands."""


class DataSettings(Settings):
    """Where the rows come from: txt, jsonl, json, csv, parquet (plain or .gz), images, sounds, folders of them,
    Hub dataset ids."""

    train: Texts = ()
    """Files, folders or Hub dataset ids to train on."""
    validation: Texts = ()
    """Rows to evaluate on the way. Default: a stable share of the training rows is held out."""
    test: Texts = ()
    """Rows to evaluate once, at the end."""
    text: str = "text"
    """Column that holds the text."""
    prompt: str | None = None
    """Column that holds what stands before the text, or before two answers: it is read, not learned."""
    pair: str | None = None
    """Column that holds a second text, to be judged together with the first (text-classification)."""
    target: str = "target"
    """Column that holds what the text becomes: its translation or summary."""
    question: str = "question"
    """Column that holds the question (question-answering)."""
    context: str = "context"
    """Column that holds the text in which the answer stands (question-answering)."""
    answers: str = "answers"
    """Column that holds the answers as SQuAD has them: {"text": [...], "answer_start": [...]}; none: unanswerable."""
    tokens: str = "tokens"
    """Column that holds a list of words (token-classification)."""
    tags: str = "tags"
    """Column that holds the tag of each word (token-classification)."""
    image: str = "image"
    """Column that holds an image: the name of its file, from the folder of the rows, or its bytes."""
    audio: str = "audio"
    """Column that holds a sound: the name of its file, from the folder of the rows, or its bytes."""
    durations: str = "durations"
    """Column that holds the seconds that each character of the text takes in the sound, a list of numbers; a silent letter
    takes 0, and a pause belongs to the sign or blank it is at (text-to-speech)."""
    speaker: str | None = None
    """Column that holds a list of numbers which says who speaks, an x-vector (text-to-speech by a SpeechT5). Default: no
    one in particular."""
    objects: str = "objects"
    """Column that holds what an image shows: {"bbox": [...], "category": [...]}, an entry for each object
    (object-detection)."""
    mask: str = "mask"
    """Column that holds what each pixel of an image shows: an image of numbers, or
    {"category": [...], "segmentation": [...]} with outlines (image-segmentation)."""
    messages: str | None = None
    """Column that holds a conversation, a list of messages with role and content (text-generation)."""
    chosen: str = "chosen"
    """Column that holds the better of two answers, text or messages (preference-tuning, reward-modeling)."""
    rejected: str = "rejected"
    """Column that holds the other one."""
    anchor: str = "anchor"
    """Column that holds a text (sentence-similarity)."""
    positive: str = "positive"
    """Column that holds a text that belongs to it."""
    negative: str | None = None
    """Column that holds a text that does not."""
    score: str | None = None
    """Column that holds a number: how alike the two texts are."""
    label: str = "label"
    """Column that holds the label."""
    group: str | None = None
    """Column whose equal values are never split between training and validation."""
    holdout: ShareText = "10%"
    """Share of the training rows held out, by a hash of their content or group, when no validation data is given; of few
    contents or groups at least one."""
    stratify: bool = False
    """Hold out the same share of every label."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """A broken row is skipped and reported (more than 1 % stop the run), or stops the run at once."""
    workers: int = Field(1, ge=0, le=64)
    """Threads that prepare the next batches. Never changes the order or the result."""


class AugmentSettings(Settings):
    """How training varies images and sounds from epoch to epoch; what becomes of one depends on seed, epoch and row alone."""

    flip: Literal["none", "horizontal", "both"] = "none"
    """Mirror left and right, or also top and bottom, each half of the time."""
    crop: float = Field(1.0, gt=0, le=1)
    """A part of the image is enlarged to all of it: at least this share of its area; 1 is off."""
    shift: float = Field(0.0, ge=0, le=0.5)
    """Move it by at most this share of its width and height."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Turn it by at most this many degrees."""
    color: float = Field(0.0, ge=0, le=1)
    """Change brightness, contrast and saturation by at most this share."""
    erase: float = Field(0.0, ge=0, le=1)
    """How often a rectangle of it, 2 to 20 % of its area, is made grey."""
    mixup: float = Field(0.0, ge=0, le=10)
    """Blend each image and its label with the next one's of the step; 0.2 blends a little, 1 evenly often; 0 is off."""
    cutmix: float = Field(0.0, ge=0, le=10)
    """Paste a rectangle of the next image of the step over each; 1 is usual, 0 is off."""
    noise: float = Field(0.0, ge=0, le=10)
    """Add noise to a sound: at most so loud beside it, at least a thousandth of that; 0.1 is 20 decibels below."""
    gain: float = Field(0.0, ge=0, le=60)
    """Make it louder or softer by at most so many decibels."""
    speed: float = Field(0.0, ge=0, le=0.5)
    """Play it faster or slower by at most this share; its pitch follows."""
    mask_time: float = Field(0.0, ge=0, le=1)
    """Silence two stretches of it, each of at most this share of its length."""
    mask_frequency: float = Field(0.0, ge=0, le=1)
    """Remove two bands of its frequencies, each of at most this share of the mel scale."""


#: Settings of `augment` for sounds, and for images.
SOUNDS = frozenset({"noise", "gain", "speed", "mask_time", "mask_frequency"})
PICTURES = frozenset(AugmentSettings.model_fields) - SOUNDS


class FreezeSettings(Settings):
    """Which pretrained parameters stay as they are."""

    layers: int | Literal["all"] = 0
    """The embeddings and this many of the lowest layers; `all` is the whole backbone, so only the head trains."""
    pattern: Texts = ()
    """Parameters whose name matches one of these patterns (`*` matches anything)."""
    thaw: SomeDurationText | None = None
    """Time after which the topmost of the frozen layers begins to train, and after as long again the next one below it."""
    views: int = Field(0, ge=0, le=1000)
    """Where images or sounds are varied: how many variations of each the frozen layers see, used in turn, so that
    they can be kept. 0: another in every epoch, and nothing is kept."""
    cache: Annotated[str, AfterValidator(_cache_word)] = "auto"
    """Keep what the frozen layers give for each row, so that they are computed once: auto, off, or a folder for it."""


class AdapterSettings(Settings):
    """A few numbers that are trained beside a pretrained model, which stays as it is."""

    kind: Literal["none", "lora", "dora", "qlora", "prompt"] = "none"
    """lora: a product of two narrow matrices is added to a layer; dora: the same, with the layer's norms learned apart; qlora:
    the layers themselves are kept in 4 bits; prompt: virtual tokens stand before every text, and only they are learned."""
    rank: int = Field(16, ge=1, le=4096)
    """Width between the two matrices."""
    alpha: int | None = Field(None, ge=1)
    """What is added counts alpha / rank. Default: twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what goes into the adapters."""
    targets: Texts = ()
    """Linear layers that get one, by patterns of their names (`*attention*`). Default: all of the backbone."""
    tokens: int = Field(20, ge=1, le=10_000)
    """Virtual tokens of a prompt."""


class OptimSettings(Settings):
    """How parameters are updated."""

    name: str = "adamw"
    """Optimizer (`burnish info` lists them)."""
    lr: float | None = Field(None, gt=0, le=1e6)
    """Peak learning rate. Default: derived from the model, and printed with its reason."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment; the momentum of sgd and muon."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate factor from each layer to the one below it (1: the same everywhere)."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of a running mean of the weights, which is evaluated and exported in their place (0.999); 0 keeps none."""
    lr_scale: Texts = ()
    """Learning rate factors by parameter name, each `PATTERN=FACTOR`, such as `classifier*=10`."""


class ScheduleSettings(Settings):
    """How the learning rate moves with the progress of the run, whatever the number of devices."""

    name: str = "cosine"
    """Shape after the warm-up (`burnish info` lists them)."""
    warmup: DurationText = "5%"
    """Time in which the rate rises linearly from zero to its peak."""
    final: float = Field(0.0, ge=0, le=1)
    """The last rate as a share of the peak (exponential: 0 means 1 %)."""
    decay: ShareText = "20%"
    """Share of the run that falls at the end of warm-up-stable-decay."""
    power: float = Field(2.0, gt=0)
    """Exponent of the polynomial schedule."""


class TrainSettings(Settings):
    """How long, how much at a time, how precisely."""

    length: SomeDurationText = "3 epochs"
    """Length of the run: "500 steps", "3 epochs", "10 Mtok"."""
    batch: int = Field(32, ge=1, le=1_000_000)
    """Rows in the global batch, that is, in one step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows computed at once. Never changes the result. Default: as many as memory allows."""
    norm_rows: int | None = Field(None, ge=1)
    """Let batch norms that train take the statistics of so many rows at a time, in the order of the data; `train.batch` is a
    multiple of it. Default: they keep the statistics they have."""
    sequence: int | None = Field(None, ge=2)
    """Longest sequence in tokens. Default: the model's, at most 512 for a pretrained model."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the model; trained weights and optimizer are float32 always. auto: bf16 where the machine is fast at it."""
    packing: Literal["auto", "off"] = "auto"
    """Lay rows end to end instead of filling them up to the longest; auto does where the model takes it."""
    recompute: Literal["auto", "none", "selective", "full"] = "auto"
    """Compute activations again in the backward pass to save memory; auto only when they would not fit."""
    compile: Literal["auto", "on", "off", "graphs"] = "auto"
    """Compile the layers; auto when the run is long enough to repay it. graphs: as CUDA graphs besides, for small models."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of every layer. Default: none from scratch, a pretrained model's own otherwise."""
    evaluate_every: SomeDurationText | None = None
    """Time between evaluations. Default: an epoch, between a hundredth and a tenth of the run."""
    best: str | None = None
    """Metric whose best checkpoint becomes `model/`. Default: the last checkpoint does."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better `train.best`."""


class ParallelSettings(Settings):
    """How many processes train together on this machine."""

    ranks: int = Field(1, ge=1, le=64)
    """Processes, each with a part of every step's rows and of the weights. Never changes what is learned."""


class GenerateSettings(Settings):
    """How text is generated."""

    max_tokens: int = Field(100, ge=1, le=1_000_000)
    """Most new tokens. What a decoder writes of a sound has as many as it needs if this is not given."""
    temperature: float | None = Field(None, ge=0, le=100)
    """Sharpness of sampling; 0 always takes the likeliest token. Default: 0.8 for running text, 0 for translations and
    summaries."""
    top_k: int = Field(50, ge=0)
    """Sample among this many likeliest tokens; 0 is all."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Sample among the likeliest tokens that hold this share of the probability."""
    beams: int = Field(1, ge=1, le=64)
    """Sequences that are followed at once to find the likeliest; more than one leaves sampling out."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """With beams: above 0 longer answers are preferred, below 0 shorter ones."""
    stop: Texts = ()
    """Texts that end an answer; they are no part of it."""
    words: str | None = None
    """A text file by whose words, and which stand beside which, beams are judged too; a list of words has one on each line
    (automatic-speech-recognition by CTC)."""
    words_weight: float = Field(0.5, ge=0, le=100)
    """How much that counts beside what is heard."""
    sounds: str | None = None
    """A folder into which each answer is written as a WAV file; the answer names it (text-to-speech)."""
    candidates: int = Field(16, ge=1, le=1024)
    """Answers that are sampled, rated and ranked (text-generation with task.rates)."""
    safety: float = Field(0.5, ge=0, le=1)
    """Probability of being safe below which an answer is dropped (text-generation with task.rates)."""


class CheckpointSettings(Settings):
    """How often the state is saved, and how many saves stay."""

    every: SomeDurationText = "30 seconds"
    """Time between checkpoints, in seconds or steps; slow saves are spaced out to cost at most 5 % of the time."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that stay, beside the best one."""


class RunSettings(Settings):
    """Where the run lives and what happens when something goes wrong."""

    dir: str | None = None
    """Run folder. Default: runs/NAME, by the recipe or the data."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of initial weights, order of data and dropout."""
    resume: str = "auto"
    """auto continues a stopped run; never starts again and keeps the old folder under another name; or a checkpoint."""
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl."""
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is no number stops the run, skips the step, or goes back to the last checkpoint."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes the accelerator if there is one."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads. Results depend on it in the last bits, so a resumed run keeps its own. Default: all cores."""
    profile: bool = False
    """Say at the end where the time of a step went."""


class Config(Settings):
    """Everything a run depends on."""

    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    freeze: FreezeSettings = FreezeSettings()
    adapter: AdapterSettings = AdapterSettings()
    optim: OptimSettings = OptimSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings = TrainSettings()
    parallel: ParallelSettings = ParallelSettings()
    generate: GenerateSettings = GenerateSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    run: RunSettings = RunSettings()

    def yaml(self) -> str:
        """Return the settings that differ from the defaults as a recipe that gives this config again."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


#: Settings that may differ when a run is continued: none of them changes what is learned.
FREE_ON_RESUME = frozenset(
    {
        "data.workers",
        "freeze.cache",
        "run.dir",
        "run.resume",
        "run.log_every",
        "run.profile",
        "checkpoint.every",
        "checkpoint.keep",
        "run.threads",
    }
)


def explained(cls: type[Config]) -> type[Config]:
    """Return the class with the string under each setting as its description, for help and reference.

    pydantic could find them itself, but would read the source of every group each time burnish starts.
    """
    for info in cls.model_fields.values():
        group: Any = info.annotation
        for owner in reversed(group.__mro__):
            if not issubclass(owner, Settings):
                continue
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore  (a class)
            for statement, below in pairwise(body):
                match statement, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        group.model_fields[name].description = inspect.cleandoc(text)
    return cls


def config_class(task_settings: type[TaskSettings]) -> type[Config]:
    """Return `Config` with the `task` group of one task."""
    if task_settings is TaskSettings:
        return Config
    default: Any = task_settings()
    return create_model("Config", __base__=Config, task=(task_settings, default))


def group_of(values: Any, cls: type[Settings]) -> Any:
    """Return `values` as a mapping: a plain value given to a group sets its first field."""
    if values is None or isinstance(values, Mapping | Settings):
        return values
    return {next(iter(cls.model_fields)): values}


def normalise(values: Mapping[str, Any], cls: type[Config] = Config) -> dict[str, Any]:
    """Return settings as nested dictionaries, every group given as a mapping; `preset` stands for `model.preset`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name == "preset":
            result.setdefault("model", {})["preset"] = value
            continue
        field = cls.model_fields.get(name)
        group = group_of(value, field.annotation) if field else value  # type: ignore[arg-type]
        if isinstance(group, Mapping) and isinstance(result.get(name), dict):
            result[name].update(group)
        else:
            result[name] = dict(group) if isinstance(group, Mapping) else group
    return result


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the union of nested settings, later layers winning field by field."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(name), dict):
                result[name] = {**result[name], **value}
            elif value is not None:
                result[name] = dict(value) if isinstance(value, Mapping) else value
    return result


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings written in a YAML recipe.

    Raises:
        UserError: the file is missing, too large, no YAML, or no mapping.
    """
    try:
        if path.is_char_device() or path.is_fifo():
            raise UserError(f"{path}: a recipe is a file; this is a device or a pipe.")
        if path.stat().st_size > 1_000_000:
            raise UserError(f"{path}: a recipe is at most 1 MB; this file is larger.")
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: the recipe cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the recipe is not UTF-8 text.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not valid YAML: {problem}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, such as `task: text-classification`.")
    return values


class _RecipeLoader(yaml.SafeLoader):
    """YAML without aliases (they can blow up in memory), duplicate keys, or surprises: 1e-3 is a number, `off` a word."""

    # As in YAML 1.2: only true and false are truth values, for on and off are settings here.
    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a recipe")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is a word, not a list or a mapping (line {key.start_mark.line + 1})")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|false|False)$"), list("tTfF"))


def parse(values: Mapping[str, Any], cls: type[Config], origin: str) -> Config:
    """Return the validated settings.

    Raises:
        UserError: with every problem of `values`, one a line, each naming the setting and what is allowed.
    """
    try:
        return cls.model_validate(normalise(values, cls))
    except ValidationError as error:
        raise UserError(explain(error, cls, origin)) from error


def explain(error: ValidationError, cls: type[Config], origin: str) -> str:
    """Return pydantic's findings as sentences that name the setting and, for unknown ones, the nearest known."""
    lines = []
    group_names = {info.annotation.__name__: name for name, info in cls.model_fields.items()}  # type: ignore[union-attr]
    title = error.title.removeprefix("nullable[").removesuffix("]")
    prefix = [group_names[title]] if title in group_names else []  # one group was validated by itself
    for problem in error.errors(include_url=False):
        path = prefix + [
            str(part) for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))
        ]
        path = [part for part in path if part not in ("int", "literal['all']", "constrained-str")]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = [setting for setting, _ in fields(cls)] + list(cls.model_fields)
            sentence = f"{name}: unknown setting.{nearest(name, known)}"
        else:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            names_it = message.startswith(("'", '"'))  # ours do where the value stands in the middle of a sentence
            sentence = f"{name}: {message}" if names_it else f"{name}: {_short(problem['input'])} {message}"
        if sentence not in lines:
            lines.append(sentence.rstrip(".") + ("." if not sentence.endswith("?") else ""))
    head = f"{origin}: " if len(lines) == 1 else f"{origin}: {len(lines)} settings are wrong:\n  "
    return head + "\n  ".join(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fields(cls: type[Config]) -> Iterator[tuple[str, Any]]:
    """Yield `("group.field", FieldInfo)` for every setting."""
    for group, info in cls.model_fields.items():
        for name, field in info.annotation.model_fields.items():  # type: ignore[union-attr]
            yield f"{group}.{name}", field


def refuse_unused(group: str, settings: Settings, names: Iterable[str], why: str) -> None:
    """Refuse settings that would have no effect.

    Args:
        names: the settings of the group that would have none.
        why: what is missing, and what to do.

    Raises:
        UserError: one of them is not what it is by default.
    """
    for name in names:
        if getattr(settings, name) != type(settings).model_fields[name].default:
            raise UserError(f"{group}.{name}: {why}")


def differences(old: Config, new: Config) -> list[str]:
    """Return one line per setting that differs and matters to what is learned."""
    lines = []
    for group, before in old.model_dump(mode="json").items():
        after = new.model_dump(mode="json").get(group, {})
        for name in before | after:
            setting = f"{group}.{name}"
            if before.get(name) != after.get(name) and setting not in FREE_ON_RESUME and group != "generate":
                lines.append(f"{setting} is {after.get(name)!r} now, was {before.get(name)!r}")
    return lines
