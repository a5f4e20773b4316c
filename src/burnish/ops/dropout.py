"""Dropout with cheap random bits: on a CPU, drawing them one by one costs more than the rest of a small layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_LEVELS = 1 << 16


def keep_mask(shape: Sequence[int], probability: float, device: torch.device) -> torch.Tensor:
    """Return which elements stay, a tensor of bools; each is dropped with `probability`, rounded to 1 in 65,536.

    Four elements share one 64-bit draw of torch's generator.

    >>> _ = torch.manual_seed(0)
    >>> 0.69 < keep_mask((1000, 100), 0.3, torch.device("cpu")).float().mean().item() < 0.71
    True
    """
    count = 1
    for size in shape:
        count *= size
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(1 << 63), None)
    threshold = round(probability * _LEVELS) - _LEVELS // 2
    return draws.view(torch.int16)[:count].ge(threshold).view(*shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, probability: float) -> torch.Tensor:
        keep = keep_mask(values.shape, probability, values.device)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - probability)
        return (values * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradients[0] * ctx.saved_tensors[0]).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """torch's dropout, its random bits drawn four at a time. Source: Srivastava et al. 2014, section 4."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return input
        return input * 0 if self.p == 1 else _Dropout.apply(input, self.p)


def swap_dropout(model: nn.Module) -> None:
    """Let every dropout module of a model on a CPU draw its random bits cheaply."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
