"""From the settings of a run to the config of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burnish.config import Config, refuse_unused
from burnish.errors import UserError
from burnish.models.dial import preset_of
from burnish.models.load import make_config, stretch


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


def model_config(config: Config, source: Path | None, options: dict[str, Any], tokenizer: Any, new: int = 0) -> Any:
    """Return the transformers config of the model that a run trains.

    Args:
        source: folder of the pretrained model; None: from scratch.
        options: what the task wants of it.
        new: how many of the tokenizer's tokens the model has yet to get (`burnish.models.load.build`).

    Raises:
        UserError: the settings ask for what this model has not, or it cannot read the tokenizer's text.
    """
    if source is None:
        if config.adapter.kind != "none":
            raise UserError(
                f"adapter.kind: {config.adapter.kind} trains beside a pretrained model; a preset's weights are random and "
                "would stay so. Give --model FOLDER, or leave out --adapter."
            )
        preset = preset_of(config)
        size = config.model.vocab_size or preset.options["vocab_size"]
        options = options | {
            "vocab_size": size,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        made = make_config({"model_type": preset.model_type, **preset.options}, options, config.train.dropout)
    else:
        if config.model.vocab_size is not None:
            raise UserError("model.vocab_size: a pretrained model has its own vocabulary; use it with --preset only.")
        made = make_config(source, options, config.train.dropout)
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
