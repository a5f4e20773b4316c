"""Optimizers: torch's own, and Muon, given the parameter groups that suit a transformer."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from burnish.config import OptimSettings
from burnish.errors import UserError, unknown

#: Those that treat every number by itself, and so train parameters that are spread over ranks.
ELEMENTWISE = ("adamw", "adam", "sgd")

#: name -> function from (settings, groups) to torch optimizers; the groups carry `lr` and `weight_decay`.
OPTIMIZERS: dict[str, Callable[[OptimSettings, list[dict[str, Any]]], list[Any]]] = {}


def _optimizer(name: str) -> Callable:
    def register(function: Callable) -> Callable:
        OPTIMIZERS[name] = function
        return function

    return register


@_optimizer("adamw")
def adamw(settings: OptimSettings, groups: list[dict[str, Any]]) -> list[Any]:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, Algorithm 2."""
    from torch.optim import AdamW

    return [AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)]


@_optimizer("adam")
def adam(settings: OptimSettings, groups: list[dict[str, Any]]) -> list[Any]:
    """Adam as published, weight decay (if any) added to the gradient. Source: Kingma and Ba 2015, Algorithm 1."""
    from torch.optim import Adam

    return [Adam(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)]


@_optimizer("sgd")
def sgd(settings: OptimSettings, groups: list[dict[str, Any]]) -> list[Any]:
    """Stochastic gradient descent with momentum `beta1`."""
    from torch.optim import SGD

    whole = not any(hasattr(value, "full_tensor") for group in groups for value in group["params"])
    return [SGD(groups, momentum=settings.beta1, fused=whole)]  # torch has no fused one for sharded parameters


@_optimizer("adafactor")
def adafactor(settings: OptimSettings, groups: list[dict[str, Any]]) -> list[Any]:
    """Second moments kept as rows and columns only. Source: Shazeer and Stern 2018, Algorithm 4."""
    from torch.optim import Adafactor

    return [Adafactor(groups)]


@_optimizer("muon")
def muon(settings: OptimSettings, groups: list[dict[str, Any]]) -> list[Any]:
    """Momentum orthogonalised for hidden matrices, AdamW for everything else, both with the same kind of rate.

    Source: Jordan et al. 2024; update scaled to AdamW's size as in Liu et al. 2025 (Moonlight), equation 4.
    """
    from burnish.optim.muon import Muon

    matrices = [group for group in groups if group["kind"] == "matrix"]
    others = [group for group in groups if group["kind"] != "matrix"]
    optimizers = adamw(settings, others) if others else []
    if matrices:
        optimizers.append(Muon(matrices, momentum=max(settings.beta1, 0.95)))
    return optimizers


def parameter_groups(
    model: Any, settings: OptimSettings, lr: float, exact: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of one kind, one learning rate and one weight decay.

    Kinds are `matrix` (hidden weights of two dimensions), `embedding` (input embeddings and the output head) and
    `vector` (norms, biases). Only matrices decay.

    Args:
        exact: by name, what is updated in place of the model's own parameters (see `burnish.models.precision`).

    Raises:
        UserError: a pattern of `optim.lr_scale` is malformed or matches nothing.
    """
    from torch import nn

    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None:
        embeddings |= {id(p) for p in output.parameters() if p.ndim == 2}
    scales = [_scale(text) for text in settings.lr_scale]
    depth = _depths(model)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "embedding" if id(parameter) in embeddings else "matrix" if parameter.ndim == 2 else "vector"
        factor = settings.layer_decay ** depth(name)
        for pattern, scale in scales:
            if fnmatch.fnmatchcase(name, pattern):
                factor, used = factor * scale, used | {pattern}
        group = groups.setdefault(
            (kind, factor), {"params": [], "kind": kind, "lr": lr * factor, "peak_lr": lr * factor}
        )
        group["weight_decay"] = settings.weight_decay if kind == "matrix" else 0.0
        group["params"].append(exact[name] if exact else parameter)
    for pattern, _ in scales:
        if pattern not in used:
            raise UserError(f"optim.lr_scale: {pattern!r} matches no parameter that trains.")
    return list(groups.values())


def _scale(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = -1.0
    if not pattern or not 0 <= factor < math.inf:
        raise UserError(f'optim.lr_scale: {text!r} is not PATTERN=FACTOR, such as "classifier*=10".')
    return pattern, factor


_LAYER = re.compile(r"\.(\d+)\.")
_BELOW = re.compile("embed|wte|wpe")


def _depths(model: Any) -> Callable[[str], int]:
    """Return a function from a parameter's name to its distance from the top: head 0, top layer 1, embeddings last."""
    layers = [int(match.group(1)) for name, _ in model.named_parameters() if (match := _LAYER.search(name))]
    count = max(layers, default=-1) + 1

    def depth(name: str) -> int:
        match = _LAYER.search(name)
        if match:
            return count - int(match.group(1))
        return count + 1 if _BELOW.search(name) else 0

    return depth


class Optimizers:
    """The optimizers of a run as one: one step, one learning rate factor, one state by parameter names.

    Args:
        model: its trainable parameters are updated.
        settings: the `optim` group.
        lr: the peak learning rate.
        exact: by name, what is updated in place of the model's own parameters.

    Raises:
        UserError: no optimizer has that name, or a pattern matches nothing.
    """

    def __init__(self, model: Any, settings: OptimSettings, lr: float, exact: Mapping[str, Any] | None = None):
        if settings.name not in OPTIMIZERS:
            raise unknown("optimizer", settings.name, OPTIMIZERS)
        self.all = OPTIMIZERS[settings.name](settings, parameter_groups(model, settings, lr, exact))
        self._average = None
        if settings.average:
            from burnish.optim.average import Average

            self._average = Average(parameter_groups(model, settings, lr, exact), settings.average)
            self.all = [*self.all, self._average]  # the last one: it sees the weights as the others have left them
        self.names = {id(value): name for name, value in (exact or dict(model.named_parameters())).items()}

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to `factor` of its peak."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def step(self) -> None:
        """Update the parameters from their gradients."""
        for optimizer in self.all:
            optimizer.step()

    @contextmanager
    def averaged(self, publish: Callable[[], None]) -> Iterator[None]:
        """Let the parameters be their averages while the block runs, if those are kept.

        Args:
            publish: gives the model the parameters, each time they have changed.
        """
        pairs = self._average.averages() if self._average else []
        if not pairs:
            yield
            return
        trained = [parameter.detach() for parameter, _ in pairs]
        kept = [value.clone() for value in trained]
        for value, (_, average) in zip(trained, pairs, strict=True):
            value.copy_(average)  # one by one: parts of several ranks know no _foreach_copy_
        publish()
        try:
            yield
        finally:
            for value, own in zip(trained, kept, strict=True):
                value.copy_(own)
            publish()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return the state as tensors by `PARAMETER/FIELD`; numbers come as tensors of one element."""
        import torch

        tensors = {}
        for optimizer in self.all:
            for parameter, fields in optimizer.state.items():
                for field, value in fields.items():
                    if value is not None:
                        value = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
                        tensors[f"{self.names[id(parameter)]}/{field}"] = value
        return tensors

    def load_state(
        self, tensors: dict[str, Any], part_of: Callable[[Any, Any], Any] = lambda parameter, whole: whole
    ) -> None:
        """Put back what `state` returned.

        Args:
            part_of: returns what this process keeps of a whole tensor that belongs to a parameter.
        """
        fields: dict[str, dict[str, Any]] = {}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            fields.setdefault(name, {})[field] = value
        for optimizer in self.all:
            for group in optimizer.param_groups:
                # As torch's own loading does: counters stay on the CPU unless a fused kernel reads them on the device.
                on_device = group.get("fused") or group.get("capturable")
                for parameter in group["params"]:
                    if (saved := fields.get(self.names[id(parameter)])) is not None:
                        optimizer.state[parameter] = {
                            field: part_of(parameter, value.to(parameter.device) if value.ndim or on_device else value)
                            for field, value in saved.items()
                        }
