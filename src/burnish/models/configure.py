"""From the settings of a run to the config of its model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from burnish.config import PICTURES, SOUNDS, Config, refuse_unused
from burnish.errors import UserError
from burnish.models.backbone import over_backbone
from burnish.models.dial import preset_of
from burnish.models.load import make_config, skeleton, stretch
from burnish.models.vision import size_of, sized
from burnish.task import Task


def first_config(config: Config, source: Path | None) -> Any:
    """Return the transformers config that a run begins with, before task, tokenizer and user change anything.

    Raises:
        UserError: it cannot be had.
    """
    if source is not None:
        return make_config(source, {}, None)
    preset = preset_of(config)
    no_tokenizer = {"bos_token_id": None, "eos_token_id": None}
    return make_config({"model_type": preset.model_type, **preset.options}, no_tokenizer, None)


def model_config(config: Config, task: Task, source: Path | None, new: int = 0, backbone: Path | None = None) -> Any:
    """Return the transformers config of the model that a run trains.

    Args:
        source: folder of the pretrained model; None: from scratch.
        new: how many of the tokenizer's tokens the model has yet to get (`burnish.models.load.build`).
        backbone: folder of the pretrained backbone of a model from scratch.

    Raises:
        UserError: the settings ask for what this model has not, or it cannot read the task's rows.
    """
    options = task.model_options()
    if source is None:
        if config.adapter.kind != "none":
            raise UserError(
                f"adapter.kind: {config.adapter.kind} trains beside a pretrained model; a preset's weights are random and "
                "would stay so. Give --model FOLDER, or leave out --adapter."
            )
        preset = preset_of(config)
        if task.reads == "text":
            options = options | {
                "vocab_size": config.model.vocab_size or preset.options["vocab_size"],
                "bos_token_id": task.tokenizer.bos_token_id,
                "eos_token_id": task.tokenizer.eos_token_id,
            }
        given = over_backbone(preset.model_type, preset.options, backbone) if backbone else preset.options
        made = make_config({"model_type": preset.model_type, **given}, options, config.train.dropout)
    else:
        if backbone is not None:
            raise UserError("model.backbone: a pretrained model has its own backbone; use it with --preset only.")
        if config.model.vocab_size is not None:
            raise UserError("model.vocab_size: a pretrained model has its own vocabulary; use it with --preset only.")
        made = make_config(source, options, config.train.dropout)
    if task.reads == "text":
        unused = type(config.augment).model_fields
        refuse_unused("augment", config.augment, unused, "only images and sounds are varied. Leave it out.")
        return _reading(made, config, task.tokenizer, new)
    if type(task).vary is Task.vary:
        unused = type(config.augment).model_fields
        refuse_unused("augment", config.augment, unused, f"{task.name} varies nothing. Leave it out.")
    other = PICTURES if task.reads == "audio" else SOUNDS
    refuse_unused("augment", config.augment, other, f"{task.name} is about {task.reads}. Leave it out.")
    return made if task.reads == "audio" else _seeing(made, task)


def _reading(made: Any, config: Config, tokenizer: Any, new: int) -> Any:
    """Return the config of a model of text, with as many positions and tokens as are asked for."""
    if config.model.context is not None:
        stretch(made, config.model.context, config.model.rope or "yarn")
    else:
        refuse_unused(
            "model", config.model, ("rope",), "no positions are added. Give --model.context, or leave it out."
        )
    vocabulary = getattr(made.get_text_config(), "vocab_size", None)
    if vocabulary is None:
        raise UserError(f"model: a {made.model_type} has no vocabulary, so it reads no text. Take a model of text.")
    if len(tokenizer) - new > vocabulary:
        raise UserError(
            f"model.tokenizer: it has {len(tokenizer) - new:,} tokens, the model has room for {vocabulary:,}. "
            "Give the model's own tokenizer, or --model.vocab-size from scratch."
        )
    if new:
        made.get_text_config().vocab_size = max(vocabulary, len(tokenizer))
    return made


def _seeing(made: Any, task: Task) -> Any:
    """Return the config of a model of images, for the size that its processor gives them."""
    if getattr(made, "vocab_size", None) is not None:
        raise UserError(
            f"model: a {made.model_type} reads text, and {task.name} is about images. Take a model of images."
        )
    return sized(made, size_of(task.tokenizer), partial(skeleton, task.auto_class))
