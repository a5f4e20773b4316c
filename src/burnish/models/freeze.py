"""Freezing: the embeddings and the lowest layers, parameters by name, or the whole backbone."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from burnish.config import FreezeSettings
from burnish.errors import UserError
from burnish.models.body import body_of
from burnish.models.stack import find_stack


def freeze(model: Any, settings: FreezeSettings) -> list[Any]:
    """Freeze parameters as asked and return the modules that must stay in evaluation mode.

    Raises:
        UserError: more layers than the model has, a pattern that matches nothing, or nothing left to train.
    """
    still = []
    if settings.layers == "all":
        body = body_of(model)
        if body is model:
            raise UserError("freeze.layers: this model has no head of its own, so `all` would freeze everything.")
        still.append(body)
    elif settings.layers:
        still += lowest(model, settings.layers)
    if settings.thaw is not None:  # `Thaw` freezes them for a time
        still = []
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


@dataclass(frozen=True)
class Thaw:
    """Layers that are frozen at first and train later, the topmost first.

    Source: Howard and Ruder 2018 (ULMFiT), section 3.3.

    Args:
        modules: of each stage, in the order in which they begin to train.
        parameters: of each stage.
        still: the modules that stay as they are all along.
    """

    modules: list[list[Any]]
    parameters: list[list[Any]]
    still: list[Any]

    def to(self, stages: int) -> list[Any]:
        """Let the first `stages` train and no other; return the modules that must be in evaluation mode."""
        for number, parameters in enumerate(self.parameters):
            for value in parameters:
                value.requires_grad_(number < stages)
        return self.still + [module for modules in self.modules[stages:] for module in modules]


def thawing(model: Any, settings: FreezeSettings, still: list[Any]) -> Thaw | None:
    """Return the layers that `freeze.thaw` lets train later; None: it is not asked for.

    Args:
        still: what `freeze` returned.

    Raises:
        UserError: no layers are frozen at first, or all stay so.
    """
    if settings.thaw is None:
        return None
    if not settings.layers:
        raise UserError("freeze.thaw: no layers are frozen at first. Give --freeze.layers too, a number or all.")
    if hasattr(model, "peft_config"):
        raise UserError(
            "freeze.thaw: adapters leave the layers as they are for good, so none can thaw. Drop one of the two."
        )
    _, stack = find_stack(model)
    count = len(stack) if settings.layers == "all" else settings.layers
    below = lowest(model, count)[:-count]
    modules = [*([layer] for layer in reversed(stack[:count])), below]
    parameters = [[value for module in stage for value in module.parameters()] for stage in modules]
    if settings.layers == "all":  # what stands above the layers, such as a last norm, begins with the topmost
        known = {id(value) for stage in parameters for value in stage}
        parameters[0] += [value for value in body_of(model).parameters() if id(value) not in known]
    trained = [[value for value in stage if value.requires_grad] for stage in parameters]
    thaw = Thaw(modules, trained, still)
    thaw.to(0)
    begins = any(value.requires_grad for value in model.parameters())
    thaw.to(len(modules))  # for now, so that all that will train is prepared for it
    if not begins:
        raise UserError(
            "freeze.thaw: every parameter is frozen at first, so nothing can be learned. Freeze fewer layers."
        )
    return thaw


def set_training_mode(model: Any, frozen: list[Any]) -> None:
    """Put the model in training mode, its frozen modules in evaluation mode: no dropout, no moving statistics."""
    model.train()
    for module in frozen:
        module.eval()
