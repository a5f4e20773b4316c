"""Freezing: the embeddings and the lowest layers, parameters by name, or the whole backbone."""

from __future__ import annotations

import fnmatch
from typing import Any

from burnish.config import FreezeSettings
from burnish.errors import UserError
from burnish.models.stack import find_stack


def freeze(model: Any, settings: FreezeSettings) -> list[Any]:
    """Freeze parameters as asked and return the modules that must stay in evaluation mode.

    Raises:
        UserError: more layers than the model has, a pattern that matches nothing, or nothing left to train.
    """
    still = []
    if settings.layers == "all":
        if model.base_model is model:
            raise UserError("freeze.layers: this model has no head of its own, so `all` would freeze everything.")
        still.append(model.base_model)
    elif settings.layers:
        still += lowest(model, settings.layers)
    for module in still:
        module.requires_grad_(False)
    for pattern in settings.pattern:
        matched = [value for name, value in model.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            names = [name for name, _ in model.named_parameters()]
            raise UserError(
                f"freeze.pattern: {pattern!r} matches no parameter; they are named like {names[len(names) // 2]!r}."
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "freeze: every parameter is frozen, so nothing can be learned. Freeze fewer layers or patterns."
        )
    return still + [module for module in model.modules() if _is_frozen(module)]


def _is_frozen(module: Any) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def lowest(model: Any, count: int) -> list[Any]:
    """Return what lies below layer `count`: every module registered before the stack in its parent, and the layers."""
    name, stack = find_stack(model)
    if not 0 < count <= len(stack):
        raise UserError(f"freeze.layers: {count} is not possible; the model has {len(stack)} layers (or give `all`).")
    below: list[Any] = []
    parent = model
    for part in name.split("."):
        for child_name, child in parent.named_children():
            if child_name == part:
                break
            below.append(child)
        parent = getattr(parent, part)
    return below + list(stack[:count])


def set_training_mode(model: Any, frozen: list[Any]) -> None:
    """Put the model in training mode, its frozen modules in evaluation mode: no dropout, no moving statistics."""
    model.train()
    for module in frozen:
        module.eval()
