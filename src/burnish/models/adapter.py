"""Adapters: a pretrained model stays as it is, and what trains stands beside it: small matrices at its linear layers (peft),
or the rows of new tokens."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.config import AdapterSettings, FreezeSettings, refuse_unused
from burnish.errors import UserError
from burnish.models.freeze import lowest
from burnish.models.quantise import dense, hush, quantise, quantised
from burnish.models.tokens import train_rows, whole_tables

_PART = ".base_layer."


def adapt(model: Any, settings: AdapterSettings, frozen: FreezeSettings, new: Sequence[int] = ()) -> None:
    """Let of a model only its adapters, the embeddings of new tokens and a task's own head go on training.

    Layers that `freeze.layers` names get no adapter, so that what they give can be kept.

    Args:
        new: ids of the new tokens; with `prompt` they are all there is.

    Raises:
        UserError: peft is not installed, or nothing fits the settings, or one belongs to another kind of adapter.

    Source: Hu et al. 2022 (LoRA), Liu et al. 2024 (DoRA), Dettmers et al. 2023 (QLoRA); peft. Lester et al. 2021 (prompts).
    """
    none = f"adapter.kind {settings.kind} has none. Give --adapter.kind"
    if settings.kind in ("none", "prompt"):
        refuse_unused("adapter", settings, ("rank", "alpha", "dropout", "targets"), f"{none} lora, or leave it out.")
    if settings.kind != "prompt":
        refuse_unused("adapter", settings, ("tokens",), f"{none} prompt, or leave it out.")
    if settings.kind == "none":
        return
    head = [] if model.get_output_embeddings() is not None else _outside(model)
    trained = {id(value) for value in head if value.requires_grad}
    if settings.kind == "prompt":
        model.requires_grad_(False)
    else:
        _put_beside(model, settings, frozen)
    for value in model.parameters():
        if id(value) in trained:
            value.requires_grad_(True)
    if new:
        train_rows(model, new)


def _put_beside(model: Any, settings: AdapterSettings, frozen: FreezeSettings) -> None:
    """Put small matrices beside the backbone's linear layers.

    Raises:
        UserError: peft is not installed, or nothing fits the settings.
    """
    if frozen.layers == "all":
        raise UserError(
            "adapter.kind: with --freeze.layers all no layer is left for adapters; give a number of layers."
        )
    hush()
    from transformers.pytorch_utils import Conv1D

    try:
        import peft
    except ImportError as error:
        raise UserError('adapter.kind: adapters need the package peft: pip install "burnish[adapters]".') from error
    linear = _linear(model)
    if settings.kind == "qlora":
        quantise(model, _shrinking(model))
    targets = _targets(model, settings, frozen, linear)
    made = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.kind == "dora",
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),  # how their weights lie; else peft warns
    )
    peft.inject_adapter_in_model(made, model)


def _linear(model: Any) -> list[str]:
    """Return the names of the backbone's linear layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    heads = {id(model.get_output_embeddings())}
    if model.base_model is not model:
        heads |= {id(m) for m in model.modules()} - {id(m) for m in model.base_model.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in heads
    ]


def _shrinking(model: Any) -> list[str]:
    """Return those of the linear layers that take 4 bits: not where the architecture computes by their weights' own type."""
    wanted = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    return [name for name in _linear(model) if not wanted & set(name.split("."))]


def quantised_count(model: Any, settings: AdapterSettings) -> int:
    """Return how many weights of a model are kept in 4 bits."""
    if settings.kind != "qlora":
        return 0
    inside = {
        name.removesuffix(_PART[:-1]): model.get_submodule(name) for name in _shrinking(model) if "lora_" not in name
    }
    return sum(layer.weight.numel() for layer in inside.values())


def _targets(model: Any, settings: AdapterSettings, frozen: FreezeSettings, linear: list[str]) -> list[str]:
    """Return those of the linear layers that get an adapter."""
    count = frozen.layers if isinstance(frozen.layers, int) else 0  # `all` was refused
    below = {id(inner) for module in lowest(model, count) for inner in module.modules()} if count else set()
    chosen = [
        name
        for name in linear
        if id(model.get_submodule(name)) not in below
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.targets or ("*",))
    ]
    if not chosen:
        shown = f"; they are named like {linear[len(linear) // 2]!r}" if linear else ""
        raise UserError(f"adapter.targets: {', '.join(settings.targets)} matches no linear layer of the model{shown}.")
    return chosen


def _outside(model: Any) -> list[Any]:
    """Return the parameters of the model that are not its backbone's."""
    if model.base_model is model:
        return []
    inside = {id(value) for value in model.base_model.parameters()}
    return [value for value in model.parameters() if id(value) not in inside]


def adapted_layers(model: Any) -> list[tuple[str, Any]]:
    """Return the layers that have an adapter, with their names."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def merged(model: Any) -> dict[str, Any] | None:
    """Return the model's tensors with what trains merged into its layers, under the names of the model without adapters.

    Layers of 4 bits come as the float32 weights that they stand for.
    The model itself stays bit for bit what it was. None: it has no adapters.
    """
    layers, tables = adapted_layers(model), dict(whole_tables(model))
    if not (layers or tables):
        return None
    small = dict(quantised(model))
    weights = {f"{name.removesuffix(_PART[:-1])}.weight": dense(layer) for name, layer in small.items()}
    weights |= {f"{name}.weight": table for name, table in tables.items()}
    for name, layer in layers:
        if layer.base_layer in small.values():
            weights[f"{name}.weight"] += layer.get_delta_weight("default").float()
            continue
        exact = layer.base_layer.weight.data
        layer.base_layer.weight.data = exact.clone()
        layer.merge(safe_merge=True)
        weights[f"{name}.weight"] = layer.base_layer.weight.data.clone()
        layer.unmerge()  # works in place, and rounds
        layer.base_layer.weight.data = exact
    own = {
        name: value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
        and ".parametrizations." not in name
        and not any(name.startswith(f"{layer}.weight") for layer in small)
    }
    return {name.replace(_PART, "."): value for name, value in own.items()} | weights


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the adapters alone, if there are any, as peft's `PeftModel.from_pretrained(base, folder)` reads them.

    With new tokens none are written: the base has no room for them.

    Args:
        base: the model they belong to.
    """
    if not adapted_layers(model) or any(whole_tables(model)):
        return
    import peft
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    found = peft.get_peft_model_state_dict(model)
    save_file(
        {f"base_model.model.{name}": value.contiguous() for name, value in found.items()},
        folder / "adapter_model.safetensors",
    )
    made = model.peft_config["default"]
    made.base_model_name_or_path = base
    made.save_pretrained(str(folder))
