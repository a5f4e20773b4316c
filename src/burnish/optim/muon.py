"""Muon: momentum whose matrices are made orthogonal before they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from burnish.env import has_fast_bf16

#: Coefficients of the odd polynomial that five Newton-Schulz steps apply to the singular values, and how many steps.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 5

#: Root mean square of an AdamW update, as a share of the learning rate.
RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum with a Nesterov look-ahead, each matrix made orthogonal, and decoupled weight decay.

    An update is scaled so that its root mean square is that of an AdamW update, and both can share a learning rate.
    On a GPU, all matrices of one shape are made orthogonal at once: a few large launches in place of many small ones.
    A CPU gains nothing from that, and takes them one by one.

    Args:
        groups: parameters of two dimensions, or groups of them; `lr` and `weight_decay` may be given by group.
        momentum: share of the average that stays from one step to the next.

    Raises:
        ValueError: a parameter has not two dimensions.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scale as in Liu et al. 2025
    (Moonlight), equation 4.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon updates matrices; one parameter has the shape {list(parameter.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters from their gradients; a parameter without one is left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _bundles([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._update(parameters, group["lr"], group["weight_decay"], group["momentum"])
        return loss

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)
        lying = [_lying(matrix) for matrix in ahead]
        updates = list(orthogonal(torch.stack(lying)).unbind()) if len(lying) > 1 else [orthogonal(lying[0])]
        updates = [u if u.shape == p.shape else u.mT for u, p in zip(updates, parameters, strict=True)]
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-lr * RMS * max(parameters[0].shape) ** 0.5)


def _bundles(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Return the parameters in bundles to be updated at once: on a GPU those of a shape, on a CPU each one alone."""
    bundles: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        alone = id(parameter) if parameter.device.type == "cpu" else None
        bundles.setdefault((parameter.device, parameter.dtype, frozenset(parameter.shape), alone), []).append(parameter)
    return list(bundles.values())


def _lying(matrix: Tensor) -> Tensor:
    """Return a matrix so that it has no more rows than columns: the products between rows are the smaller ones."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix, or each of a stack of them, with singular values near 1 (0.7 to 1.2) and its singular vectors kept.

    In bfloat16 where the device is fast in it, else in float32.

    Args:
        matrix: [..., rows, columns], rows at most columns.

    >>> matrix = torch.diag(torch.tensor([3.0, 0.5, 2.0]))
    >>> [0.6 < value < 1.3 for value in orthogonal(matrix).diagonal().tolist()]
    [True, True, True]
    """
    a, b, c = POLYNOMIAL
    dtype = torch.bfloat16 if has_fast_bf16(matrix.device.type) else torch.float32
    matrix = matrix.to(dtype, copy=True)
    matrix.div_(
        torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True).clamp_(min=1e-7)
    )  # no singular value above 1
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    for _ in range(NUM_STEPS):
        gram = matrix @ matrix.mT
        polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
        matrix = add_product(matrix, polynomial, matrix, beta=a)
    return matrix
