"""Batch norm that keeps the statistics it has, so that a row's result does not depend on the rows computed with it."""

from __future__ import annotations

import torch
from torch import nn


class HeldBatchNorm(nn.Module):
    """torch's batch norm by its running mean and variance, in training too; its weight and bias are learned.

    Written as one product and one sum: torch 2.13's own gradient of it is wrong on a CPU for a single row whose gradient
    comes transposed, as it does before attention.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shape = (1, -1, *[1] * (input.ndim - 2))
        shift = self.bias - self.running_mean * scale
        return input * scale.to(input.dtype).view(shape) + shift.to(input.dtype).view(shape)


def hold_batch_norm(model: nn.Module) -> int:
    """Let every batch norm of a model keep its statistics from now on, and return how many there are."""
    kinds = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    held = [module for module in model.modules() if type(module) in kinds and module.affine]  # type: ignore
    for module in held:
        module.__class__ = HeldBatchNorm
    return len(held)
