"""Linear layers whose weights stay as they are for a while, on processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import nn


@contextmanager
def packed(model: nn.Module, positions: int, room: int) -> Iterator[None]:
    """Compute a model's frozen linear layers from weights packed for oneDNN's kernels while the block runs.

    `functional.linear` packs a weight anew in each call, and writes the bias to memory before the product is added to it.
    The results are bit-equal (tested). Only layers in bfloat16 on a processor are changed: float32 has nothing to pack.

    Args:
        positions: about how many come at once.
        room: bytes that the packed copies may take; what does not fit computes as ever.
    """
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    changed = []
    for module in model.modules() if supported else ():
        if not _can_be_packed(module) or module.weight.nbytes > room:
            continue
        room -= module.weight.nbytes
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight, positions)
        module.forward = partial(_linear, weight, module.bias)
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _can_be_packed(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    return weight.dtype == torch.bfloat16 and weight.is_cpu and not weight.requires_grad


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
