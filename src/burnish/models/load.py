"""Building a model: pretrained weights or fresh ones, the task's own head, and a report of what came from where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import UserError
from burnish.models.body import body_of
from burnish.models.source import make_known, read_config, with_safetensors
from burnish.units import readable_count

#: Parts of a backbone that some heads do without, so that published checkpoints may lack or carry them.
_OPTIONAL = ("pooler",)


@dataclass(frozen=True)
class Loaded:
    """What became of the weights: names of parameters and buffers."""

    loaded: int = 0
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what a person should know, one sentence a line."""
        lines = [f"{self.loaded} tensors loaded" if self.loaded else "every tensor is new"]
        if self.loaded and self.new:
            lines.append(f"new, to be learned: {_shortened(self.new)}")
        if self.left_out:
            lines.append(f"in the file but not in this model, left out: {_shortened(self.left_out)}")
        return lines


def _shortened(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def make_config(source: Path | dict[str, Any], options: dict[str, Any], dropout: float | None) -> Any:
    """Return the transformers config of a folder, or of preset values that hold `model_type`.

    Args:
        options: settings of the task and the user, over those of the source.
        dropout: probability for every dropout of the model; None keeps the config's own.

    Raises:
        UserError: the config cannot be built from those values.
    """
    from transformers import AutoConfig

    values = {**(read_config(source) if isinstance(source, Path) else source), **options}
    make_known(values["model_type"])
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{source}: the model's config does not hold together ({str(error)[:200]}).") from error
    if dropout is not None:
        for name in _dropout_settings(config):
            setattr(config, name, dropout)
    return config


def _dropout_settings(config: Any) -> list[str]:
    return [
        name
        for name, value in config.to_dict().items()
        if ("drop" in name or name.endswith("_pdrop"))
        and isinstance(value, float | int)
        and not isinstance(value, bool)
    ]


def dropout_of(config: Any) -> float:
    """Return the largest dropout probability of a config."""
    return max([float(getattr(config, name)) for name in _dropout_settings(config)], default=0.0)


def stretch(config: Any, context: int, kind: str) -> None:
    """Let a model with rotary positions have `context` of them, more than it was made for, by scaling its angles.

    Args:
        kind: "yarn" scales the slow ones only (Peng et al. 2024, section 3), "linear" all of them (Chen et al. 2023,
            equation 4).

    Raises:
        UserError: the model has no rotary positions, or scaled ones, or as many already.
    """
    text, limit = config.get_text_config(), longest_sequence(config)
    angles = getattr(text, "rope_parameters", None)
    if not angles or limit is None:
        raise UserError(f"model.context: a {text.model_type} has no rotary positions, so it cannot reach further.")
    if any(isinstance(value, dict) for value in angles.values()) or angles.get("rope_type", "default") != "default":
        raise UserError(
            f"model.context: the angles of this {text.model_type} are scaled already; it takes none besides."
        )
    if context <= limit:
        raise UserError(f"model.context: this model has {limit} positions already; give more, or leave it out.")
    text.rope_parameters = {
        **angles,
        "rope_type": kind,
        "factor": context / limit,
        "original_max_position_embeddings": limit,
    }
    text.max_position_embeddings = context


def skeleton(auto_class: str, config: Any) -> Any:
    """Return the model on the meta device: every shape, no memory.

    Raises:
        UserError: the architecture has no such head.
    """
    import torch

    with torch.device("meta"):
        return _from_config(auto_class, config)


def _from_config(auto_class: str, config: Any) -> Any:
    import torch
    import transformers

    make = getattr(transformers, auto_class).from_config
    try:
        try:
            return make(config, dtype=torch.float32, attn_implementation="sdpa")
        except ValueError as error:
            if "does not support an attention implementation" not in str(error):
                raise
            return make(config, dtype=torch.float32, attn_implementation="eager")
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise UserError(f"{config.model_type}: transformers has no {auto_class} for this architecture.") from error
        raise
    except ImportError as error:
        missing = " ".join(str(error).split())[:120]
        raise UserError(
            f"{config.model_type}: a part of the model needs a package that is missing ({missing})."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and reports away; what matters in them is said by burnish."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def build(
    auto_class: str, config: Any, folder: Path | None, beginnings: Mapping[int, Sequence[int]] | None = None
) -> tuple[Any, Loaded]:
    """Return the model in float32 and what became of the weights in `folder` (None: fresh weights by the model's rules).

    New weights depend on torch's global seed.

    Args:
        beginnings: ids of tokens that the folder's model has not, each with the older ones whose mean it begins as.

    Raises:
        UserError: the weights are damaged, or lack part of the backbone: a silent mismatch is an error.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    if folder is None:
        return _from_config(auto_class, config), Loaded()
    attention = skeleton(auto_class, config).config._attn_implementation  # also refuses a head that does not exist
    folder = with_safetensors(folder)
    wanted = config.get_text_config().vocab_size if beginnings else 0
    if beginnings:
        config = deepcopy(config)
        config.get_text_config().vocab_size = make_config(folder, {}, None).get_text_config().vocab_size
    try:
        with quiet():
            model, info = getattr(transformers, auto_class).from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder}: the weights cannot be loaded ({str(error)[:200]}).") from error
    mismatched = [str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in info["mismatched_keys"]]
    new = sorted({*info["missing_keys"], *mismatched})
    if stretched := [name for name in mismatched if "position_embedding" in name]:
        from burnish.models.vision import stretch_positions

        tables = _read(folder, stretched)
        done = stretch_positions(tables, model)
        new = [name for name in new if name not in done]
    classes = (config.num_labels, config.num_labels + 1)  # what has one row for each is a head, wherever it lies
    heads = {name for name in mismatched if model.state_dict()[name].shape[0] in classes}
    _refuse_holes(model, folder, (name for name in new if name not in heads))
    if beginnings:
        from burnish.models.tokens import grow

        grow(model, wanted, beginnings)
    total = len(model.state_dict())
    return model, Loaded(total - len(new), new, sorted(info["unexpected_keys"]))


def _read(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return weights by name from a folder's files, whatever prefix they have there."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (not a dictionary)
                found |= {name: weights.get_tensor(key) for name in names if name.endswith(key) or key.endswith(name)}
    return found


def _refuse_holes(model: Any, folder: Path, new: Iterable[str]) -> None:
    backbone = body_of(model)
    prefix = next((f"{name}." for name, child in model.named_children() if child is backbone), "")
    own = set(backbone.state_dict())
    holes = []
    for name in new:
        inner = name.removeprefix(prefix)
        in_backbone = name.startswith(prefix) if backbone is not model else True
        if in_backbone and inner in own and inner.split(".")[0] not in _OPTIONAL:
            holes.append(name)
    if holes:
        raise UserError(
            f"{folder}: the weights do not fit the model: {len(holes)} tensors of the backbone are missing or of another "
            f"shape ({_shortened(holes, 3)})."
        )


def parameter_count(model: Any) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def trainable_count(model: Any) -> int:
    """Return the number of parameters that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def longest_sequence(config: Any) -> int | None:
    """Return how many positions the model has; None if it has no limit of its own."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # RoBERTa's positions start after the padding index.
    offset = (text.pad_token_id or 0) + 1 if "roberta" in text.model_type or text.model_type == "camembert" else 0
    return limit - offset


def describe(model: Any) -> str:
    """Return the architecture and size in one line."""
    text = model.config.get_text_config()
    sizes = {"layers": "num_hidden_layers", "wide": "hidden_size", "heads": "num_attention_heads"}
    found = [f"{getattr(text, name)} {word}" for word, name in sizes.items() if hasattr(text, name)]
    found += [f"vocabulary {text.vocab_size:,}"] if getattr(text, "vocab_size", None) else []
    return f"{type(model).__name__}, {readable_count(parameter_count(model))} parameters: {', '.join(found)}"
