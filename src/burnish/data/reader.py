"""What makes numbers of a run's rows: tokenizer, image processor or feature extractor, its model's own or a new one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.config import ModelSettings
from burnish.data import extractor as sounds
from burnish.data import processor as images
from burnish.data import tokenizer as text
from burnish.data.prepare import Splits, documents
from burnish.env import cache_dir, fingerprint
from burnish.errors import UserError
from burnish.run import home_path
from burnish.task import Task


def load_reader(task: type[Task], folder: Path) -> Any:
    """Return the reader in a folder.

    Raises:
        UserError: there is none that can be read.
    """
    if task.reads == "images":
        need_vision()
        return images.load_processor(folder)
    if task.reads == "audio":
        need_audio()
        return (
            sounds.load_writer(folder, sounds.load_extractor(folder)) if task.writes else sounds.load_extractor(folder)
        )
    return text.load_tokenizer(folder)


def need_vision() -> None:
    """Refuse images where nothing can decode them.

    Raises:
        UserError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise UserError('data: images need the package Pillow: pip install "burnish[vision]".')


def need_audio() -> None:
    """Refuse sounds where nothing can decode them.

    Raises:
        UserError: a package is not installed.
    """
    missing = [name for name in ("soundfile", "soxr", "jiwer") if find_spec(name) is None]
    if missing:
        raise UserError(f'data: sounds need the package {missing[0]}: pip install "burnish[audio]".')


def find_reader(
    task: type[Task],
    settings: ModelSettings,
    facts: Mapping[str, Any],
    source: Path | None,
    preset: Any,
    splits: Splits,
    find: Callable[[str], Path],
    say: Callable[[str], None],
) -> Any:
    """Return that of the model a run begins with; for one that reads text from scratch it is trained on the rows.

    Args:
        facts: what the task has learned of the training rows.
        source: folder of the pretrained model, or of the pretrained backbone of one from scratch; None: neither.
        preset: of a model from scratch (`burnish.models.scratch.Preset`).
        find: returns the folder of a Hub id.

    Raises:
        UserError: there is none that can be read, the preset reads something else, or a setting is not for this task.
    """
    if preset and preset.reads != task.reads:
        raise UserError(f"model.preset: {settings.preset} reads {preset.reads}, and {task.name} is about {task.reads}.")
    if task.reads == "images":
        need_vision()
        _refuse(settings, task, "tokenizer", "vocab_size", "added_tokens", "context", "compute")
        if preset:
            size = settings.image_size or preset.options["image_size"]
            return images.make_processor(size if isinstance(size, int) else size[0], like=source)
        assert source is not None  # the model is either from scratch or pretrained
        return images.load_processor(source, settings.image_size)
    _refuse(settings, task, "image_size")
    if task.reads == "audio":
        return _find_listener(task, settings, facts, source, preset, find, say)
    if settings.tokenizer is not None:
        path = home_path(settings.tokenizer)
        return text.load_tokenizer(path if os.path.isdir(path) else find(settings.tokenizer))
    if source:
        return text.load_tokenizer(source)
    count, special = settings.vocab_size or preset.options["vocab_size"], task.special_tokens
    cached = cache_dir() / "tokenizers" / fingerprint(splits.fingerprint, count, special, "byte-level BPE 3")
    if cached.is_dir():
        return text.load_tokenizer(cached)
    say(f"training a byte-level BPE tokenizer of {count:,} tokens on the training rows")
    return text.train_tokenizer(cached, documents(splits.train), count, special)


def _find_listener(
    task: type[Task],
    settings: ModelSettings,
    facts: Mapping[str, Any],
    source: Path | None,
    preset: Any,
    find: Callable[[str], Path],
    say: Callable[[str], None],
) -> Any:
    """Return the feature extractor of a run and, where its task writes text, the tokenizer with it."""
    need_audio()
    _refuse(settings, task, "vocab_size", "added_tokens", "context", "compute")
    extractor = sounds.make_extractor(preset.options) if preset else sounds.load_extractor(source or Path())
    if not task.writes:
        _refuse(settings, task, "tokenizer")
        return extractor
    if settings.tokenizer is not None:
        path = home_path(settings.tokenizer)
        return sounds.load_writer(path if os.path.isdir(path) else find(settings.tokenizer), extractor)
    if source and text.holds_tokenizer(source):
        return sounds.load_writer(source, extractor)
    if "characters" not in facts:
        raise UserError(f"{source}: holds no tokenizer. Give --model.tokenizer.")
    characters = facts["characters"]
    say(f"learning to write {len(characters)} characters: {' '.join(characters)}")
    folder = cache_dir() / "tokenizers" / fingerprint(characters, task.ends, "characters 1")
    return sounds.make_writer(folder, characters, extractor, task.ends)


def content_of(task: type[Task], reader: Any) -> str:
    """Return a text that is the same for readers that make the same of any row."""
    kind = {"images": images, "audio": sounds}.get(task.reads, text)
    return kind.content_of(reader)


def _refuse(settings: ModelSettings, task: type[Task], *names: str) -> None:
    for name in names:
        if getattr(settings, name):
            raise UserError(
                f"model.{name}: {task.name} reads {task.reads}, which this setting is not about. Leave it out."
            )


def read_alike(task: type[Task], first: Any, second: Any) -> bool:
    """Return whether two readers give a model the same for any row."""
    if task.reads == "audio":
        return sounds.content_of(first) == sounds.content_of(second)
    if task.reads == "images":
        return first.to_dict() == second.to_dict()
    return first.get_vocab() == second.get_vocab()
