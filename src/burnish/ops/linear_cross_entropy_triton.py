"""The cross-entropy of a chunk of logits in one kernel; imported only where there is a GPU and Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_COLUMNS = 4096


@triton.jit
def _score(
    logits,
    row_stride,
    targets,
    losses,
    vocabulary,
    scale,
    softcap,
    ignore_index,
    HAS_SOFTCAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per row: a first pass keeps a running maximum and sum, a second turns logits into their gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    scored = target != ignore_index
    is_class = (target >= 0) & (target < vocabulary)
    # Read before anything is overwritten: the reductions below keep all threads of the row behind this line.
    own = tl.load(logits + target, mask=is_class, other=float("nan")).to(tl.float32) * scale
    if HAS_SOFTCAP:
        own = softcap * (2 * tl.sigmoid(2 * own / softcap) - 1)

    largest = float("-inf")
    total = 0.0
    for start in range(0, vocabulary, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < vocabulary
        values = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * scale
        if HAS_SOFTCAP:
            values = softcap * (2 * tl.sigmoid(2 * values / softcap) - 1)
        values = tl.where(inside, values, float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(values, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(values - largest), 0)
    tl.store(losses + row, tl.where(scored, tl.log(total) + (largest - own), 0.0))

    if GRADIENT:
        for start in range(0, vocabulary, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < vocabulary
            values = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * scale
            slope = scale
            if HAS_SOFTCAP:
                bent = 2 * tl.sigmoid(2 * values / softcap) - 1
                values = softcap * bent
                slope = scale * (1 - bent * bent)
            gradient = (tl.exp(values - largest) / total - tl.where(columns == target, 1.0, 0.0)) * slope
            gradient = tl.where(scored, gradient, 0.0)
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=inside)


def score_(
    logits: Tensor, targets: Tensor, softcap: float | None, scale: float, ignore_index: int, gradient: bool
) -> Tensor:
    """Return each row's cross-entropy [n] in float32; with `gradient`, `logits` [n, V] become their own gradient.

    Nothing waits for the device. A target outside [0, V) that is not `ignore_index` gives the loss NaN.

    Args:
        logits: [n, V], its rows contiguous, in bfloat16, float16 or float32.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        columns = min(triton.next_power_of_2(logits.shape[1]), _MOST_COLUMNS)
        _score[(len(logits),)](
            logits,
            logits.stride(0),
            targets.contiguous(),
            losses,
            logits.shape[1],
            scale,
            1.0 if softcap is None else softcap,
            ignore_index,
            HAS_SOFTCAP=softcap is not None,
            GRADIENT=gradient,
            COLUMNS=columns,
            num_warps=8 if columns >= 2048 else 4,
        )
    return losses
