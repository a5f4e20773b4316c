"""Linear layers whose weights stay as they are for a while, on processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


@contextmanager
def packed(model: nn.Module, positions: int) -> Iterator[None]:
    """Compute a model's linear layers from weights packed for oneDNN's kernels while the block runs, without gradients.

    `functional.linear` packs a weight anew in each call, and writes the bias to memory before the product is added to it.
    The results are bit-equal (tested). Only layers in bfloat16 on a processor are changed: float32 has nothing to pack.

    Args:
        positions: about how many come at once.
    """
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    changed = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.is_cpu and supported
    ]
    for module in changed:
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), positions)
        module.forward = partial(_linear, weight, module.bias)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
