"""Batch norms by which a row's result does not depend on how a step is cut: statistics held, or of fixed groups of rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class HeldBatchNorm(nn.Module):
    """torch's batch norm by its running mean and variance, in training too; its weight and bias are learned.

    Written as one product and one sum: torch 2.13's own gradient of it is wrong on a CPU for a single row whose gradient
    comes transposed, as it does before attention.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    momentum: float | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shape = (1, -1, *[1] * (input.ndim - 2))
        shift = self.bias - self.running_mean * scale
        return input * scale.to(input.dtype).view(shape) + shift.to(input.dtype).view(shape)


class GroupBatchNorm(HeldBatchNorm):
    """Batch norm in training by the statistics of `rows` rows at a time, in their order; by the running ones otherwise.

    A group is what a device's batch is to Ioffe and Szegedy 2015, but part of the recipe: it stays the same however a step
    is cut into micro-batches. The running statistics move once a step, by the mean over its groups (`learn`). A norm
    whose weight is frozen is held.
    """

    rows: int
    seen: list[torch.Tensor]
    """Mean and variance of each group since the last `forget`, 2 x channels."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.weight.requires_grad):
            return super().forward(input)
        normed = [self._normed(group) for group in input.split(self.rows)]
        return torch.cat(normed) if len(normed) > 1 else normed[0]

    def _normed(self, group: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(2, len(self.running_mean), device=group.device)
        out = F.batch_norm(group, found[0], found[1], self.weight, self.bias, True, momentum=1.0, eps=self.eps)
        self.seen.append(found)
        if out.requires_grad:
            out.register_hook(torch.Tensor.contiguous)  # see HeldBatchNorm: torch's gradient is wrong otherwise
        return out

    def forget(self) -> None:
        """Start a step's groups from none."""
        self.seen = []

    @torch.no_grad()
    def learn(self) -> None:
        """Move the running statistics by the mean of those of the step's groups."""
        if not self.seen:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        mean, variance = torch.stack(self.seen).mean(0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def hold_batch_norm(model: nn.Module, rows: int | None = None) -> list[HeldBatchNorm]:
    """Let every batch norm of a model keep its statistics from now on, and return them.

    Args:
        rows: let those that train take the statistics of so many rows instead.
    """
    kinds = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    held = [module for module in model.modules() if type(module) in kinds and module.affine]  # type: ignore
    for module in held:
        module.__class__ = GroupBatchNorm if rows else HeldBatchNorm
        if isinstance(module, GroupBatchNorm):
            module.rows, module.seen = rows, []  # type: ignore
    return held  # type: ignore
