"""What makes numbers of a run's rows: the tokenizer or the image processor, its model's own or a new one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.config import ModelSettings
from burnish.data import processor as images
from burnish.data import tokenizer as text
from burnish.data.prepare import Splits, documents
from burnish.env import cache_dir, fingerprint
from burnish.errors import UserError
from burnish.task import Task


def load_reader(task: type[Task], folder: Path) -> Any:
    """Return the tokenizer or the image processor in a folder.

    Raises:
        UserError: there is none that can be read.
    """
    if task.reads == "images":
        need_vision()
        return images.load_processor(folder)
    return text.load_tokenizer(folder)


def need_vision() -> None:
    """Refuse images where nothing can decode them.

    Raises:
        UserError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise UserError('data: images need the package Pillow: pip install "burnish[vision]".')


def find_reader(
    task: type[Task],
    settings: ModelSettings,
    source: Path | None,
    preset: dict[str, Any] | None,
    splits: Splits,
    find: Callable[[str], Path],
    say: Callable[[str], None],
) -> Any:
    """Return that of the model a run begins with; for one that reads text from scratch it is trained on the rows.

    Args:
        source: folder of the pretrained model, or of the pretrained backbone of one from scratch; None: neither.
        preset: settings of the config of a model from scratch.
        find: returns the folder of a Hub id.

    Raises:
        UserError: there is none that can be read, the preset reads something else, or a setting is not for this task.
    """
    size = "image_size" if task.reads == "images" else "vocab_size"
    if preset and size not in preset:
        other = "text" if task.reads == "images" else "images"
        raise UserError(f"model.preset: {settings.preset} reads {other}, and {task.name} is about {task.reads}.")
    if task.reads == "images":
        need_vision()
        _refuse(settings, task, "tokenizer", "vocab_size", "added_tokens", "context", "compute")
        if preset:
            size = settings.image_size or preset["image_size"]
            return images.make_processor(size if isinstance(size, int) else size[0], like=source)
        assert source is not None  # the model is either from scratch or pretrained
        return images.load_processor(source, settings.image_size)
    _refuse(settings, task, "image_size")
    if settings.tokenizer is not None:
        path = Path(settings.tokenizer).expanduser()
        return text.load_tokenizer(path if path.is_dir() else find(settings.tokenizer))
    if source:
        return text.load_tokenizer(source)
    count, special = settings.vocab_size or (preset or {})["vocab_size"], task.special_tokens
    cached = cache_dir() / "tokenizers" / fingerprint(splits.fingerprint, count, special, "byte-level BPE 3")
    if cached.is_dir():
        return text.load_tokenizer(cached)
    say(f"training a byte-level BPE tokenizer of {count:,} tokens on the training rows")
    return text.train_tokenizer(cached, documents(splits.train), count, special)


def content_of(task: type[Task], reader: Any) -> str:
    """Return a text that is the same for tokenizers or processors that make the same of any row."""
    return images.content_of(reader) if task.reads == "images" else text.content_of(reader)


def _refuse(settings: ModelSettings, task: type[Task], *names: str) -> None:
    for name in names:
        if getattr(settings, name):
            raise UserError(
                f"model.{name}: {task.name} reads {task.reads}, which this setting is not about. Leave it out."
            )


def read_alike(task: type[Task], first: Any, second: Any) -> bool:
    """Return whether two tokenizers, or two processors, give a model the same for any row."""
    if task.reads == "images":
        return first.to_dict() == second.to_dict()
    return first.get_vocab() == second.get_vocab()
