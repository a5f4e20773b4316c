"""The output layer and its cross-entropy as one operation that never holds all logits.

Rows go through in chunks. A chunk's logits are made by one matrix product, turned in place into their own gradient, and
multiplied into the gradients of the rows and of the weight, all in the forward pass: nothing is computed twice, and the
largest tensor is one chunk of logits in the type of the rows. The loss itself is kept in float32.

Source: the gradient made in the forward pass is from Hsu et al. 2024 (Liger Kernel), section 3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Bytes of one chunk of logits: enough rows for the matrix products to run well.
CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 1024 * 2**20}

#: Numbers that a row of logits is rounded up to on a GPU, so that its matrix products use the fast kernels.
_ALIGNED = 64

#: Bytes of float32 logits that a CPU core works on at a time: half of the second-level cache of most.
CACHE_BYTES = 512 * 2**10

_BLOCK = 2048


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    ignore_index: int = -100,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return the sum over rows of the cross-entropy between `targets` and the logits `hidden @ weight.T + bias`.

    Logits are multiplied by `scale` and then, with `softcap`, squeezed to `softcap * tanh(logits / softcap)`. Products
    are made in the type of `hidden` (under autocast, in its type), all else in float32; gradients come in each input's
    own type. Can be differentiated once.

    On a CPU, ignored rows are dropped before the product. On a GPU, counting them would wait for the device: they cost
    what every row costs and add nothing, so a caller drops them beforehand.

    Args:
        hidden: [n, H] rows.
        weight: [V, H]; may be tied to the input embedding.
        targets: [n] int64 in [0, V), or `ignore_index`.
        bias: [V].
        chunk_bytes: the most that one chunk of logits may take.

    Returns:
        A scalar in float32 (float64 if `hidden` is); 0 if no row counts.

    Raises:
        ValueError: shapes do not fit, or a target is outside [0, V). A GPU is not asked for the latter: there the loss
            becomes NaN.

    >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], requires_grad=True)
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, -100]))
    >>> round(loss.item(), 4)
    0.4402
    >>> loss.backward()
    >>> [[round(x, 3) for x in row] for row in hidden.grad.tolist()]
    [[-0.269, 0.269], [0.119, -0.119], [0.0, 0.0]]
    """
    hidden, targets, _ = _scored_rows(hidden, weight, targets, ignore_index)
    options = (softcap, scale, ignore_index, chunk_bytes)
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, options)
    return _forward(hidden, weight, bias, targets, options)[0].sum()


def linear_token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    ignore_index: int = -100,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Return each row's cross-entropy [n], 0 where the target is ignored.

    Where it is differentiated, the backward pass makes the logits again: what a row counts is not known before. Arguments
    and errors are those of `linear_cross_entropy`.

    >>> hidden, weight = torch.eye(2), torch.eye(2)
    >>> [round(loss, 4) for loss in linear_token_losses(hidden, weight, torch.tensor([0, -100])).tolist()]
    [0.3133, 0.0]
    """
    count = len(targets)
    hidden, targets, kept = _scored_rows(hidden, weight, targets, ignore_index)
    losses = _TokenLosses.apply(hidden, weight, bias, targets, (softcap, scale, ignore_index, chunk_bytes))
    return losses if kept is None else losses.new_zeros(count).index_copy_(0, kept, losses)


def _scored_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check the input; return the rows to score, in the type to compute in, their targets and their places (None: all)."""
    if hidden.ndim != 2 or weight.ndim != 2 or targets.shape != hidden.shape[:1] or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)}, weight {list(weight.shape)} and targets {list(targets.shape)} do not fit: "
            "[n, H], [V, H] and [n] are needed."
        )
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if hidden.device.type != "cpu":
        return hidden, targets, None
    kept = (targets != ignore_index).nonzero().squeeze(1)
    if len(kept) == len(targets):
        kept = None
    else:
        hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(weight)):
        raise ValueError(
            f"Targets lie in [{int(targets.min())}, {int(targets.max())}]; the output layer has {len(weight)} rows, and "
            f"{ignore_index} marks what is ignored."
        )
    return hidden, targets, kept


class _TokenLosses(torch.autograd.Function):
    """The loss of each row; its gradients are made when it is known what each row counts."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: tuple
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.options = options
        return _forward(hidden, weight, bias, targets, options)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        hidden, weight, bias, targets = ctx.saved_tensors
        _, gradients = _forward(hidden, weight, bias, targets, ctx.options, ctx.needs_input_grad[:3], upstream[0])
        pairs = zip(gradients, (hidden, weight, bias), strict=True)
        return *(None if gradient is None else gradient.to(given.dtype) for gradient, given in pairs), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses; its gradients are ready when the forward pass is, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: tuple
    ) -> Tensor:
        losses, ctx.gradients = _forward(hidden, weight, bias, targets, options, ctx.needs_input_grad[:3])
        ctx.types = [tensor.dtype if tensor is not None else None for tensor in (hidden, weight, bias)]
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:  # pyrefly: ignore [bad-override]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: backward ran a second time; its gradients were handed out.")
        scaled = []
        for gradient, dtype in zip(gradients, ctx.types, strict=True):
            if gradient is not None:  # scaled in the wider of the two types, so that it is rounded once
                gradient = gradient.to(torch.promote_types(gradient.dtype, dtype)).mul_(upstream[0]).to(dtype)
            scaled.append(gradient)
        return *scaled, None, None


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: tuple,
    needed: tuple[bool, ...] = (False, False, False),
    counts: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return each row's loss and the gradients of the sum that are `needed`, by `hidden`, `weight` and `bias`.

    Args:
        counts: how much each row counts in the sum that is differentiated [n]; None: 1.
    """
    softcap, scale, ignore_index, chunk_bytes = options
    count, vocabulary, dtype, device = len(hidden), len(weight), hidden.dtype, hidden.device.type
    exact = torch.promote_types(dtype, torch.float32)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    most = (chunk_bytes or CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])) // (vocabulary * dtype.itemsize)
    chunks = -(-count // max(1, most))
    rows = -(-count // max(1, chunks))
    for_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needed[0] else None
    for_weight = torch.zeros_like(weight, dtype=exact) if needed[1] and chunks != 1 else None
    for_bias = hidden.new_zeros(vocabulary, dtype=exact) if needed[2] else None
    losses = hidden.new_empty(count, dtype=exact)
    # On a GPU each row of logits begins at an aligned address, as if the vocabulary were padded; the weight need not be.
    width = vocabulary if device == "cpu" else -(-vocabulary // _ALIGNED) * _ALIGNED
    buffer = hidden.new_empty(rows, width)[:, :vocabulary]
    score_ = _score_of(device, dtype)
    with torch.autocast(device, enabled=False):
        for start in range(0, count, max(1, rows)):
            part = hidden[start : start + rows]
            end = start + len(part)
            logits = buffer[: len(part)]
            if bias is None:
                torch.mm(part, weight.t(), out=logits)
            else:
                torch.addmm(bias, part, weight.t(), out=logits)
            losses[start:end] = score_(logits, targets[start:end], softcap, scale, ignore_index, any(needed))
            if counts is not None:
                logits.mul_(counts[start:end, None])
            if for_hidden is not None:
                torch.mm(logits, weight, out=for_hidden[start:end])
            if for_bias is not None:
                for_bias += logits.sum(0, dtype=exact)
            if needed[1] and chunks == 1:
                for_weight = logits.t() @ part
            elif for_weight is not None:
                _add_product(for_weight, logits, part)
    return losses, [for_hidden, for_weight, for_bias]


def _add_product(total: Tensor, logits: Tensor, hidden: Tensor) -> None:
    """Add `logits.T @ hidden` to `total`, which may be of a wider type than the two."""
    if total.dtype == logits.dtype:
        total.addmm_(logits.t(), hidden)
        return
    block = _BLOCK if logits.device.type == "cpu" else len(total)  # a CPU adds a block while it is in the cache
    product = hidden.new_empty(min(block, len(total)), hidden.shape[1])
    for start in range(0, len(total), block):
        part = total[start : start + block]
        part += torch.mm(logits[:, start : start + block].t(), hidden, out=product[: len(part)])


Score = Callable[[Tensor, Tensor, float | None, float, int, bool], Tensor]


@functools.cache
def _score_of(device: str, dtype: torch.dtype) -> Score:
    """Return what scores a chunk on a kind of device: the Triton kernel where it can, else `score_`."""
    if device == "cuda" and dtype != torch.float64:
        try:
            from burnish.ops.linear_cross_entropy_triton import score_ as on_gpu
        except ImportError:
            return score_
        return on_gpu
    return score_


def score_(
    logits: Tensor, targets: Tensor, softcap: float | None, scale: float, ignore_index: int, gradient: bool
) -> Tensor:
    """Return each row's cross-entropy [n] in float32; with `gradient`, `logits` [n, V] become their own gradient.

    A few rows at a time stay in the cache while a chain of simple operations passes over them in float32. Without
    `gradient`, `logits` are left in an unknown state.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    scored = targets != ignore_index
    index = torch.where(scored, targets, 0)[:, None]
    target = logits.gather(1, index).to(exact) * scale
    if softcap is not None:
        target = softcap * torch.tanh(target / softcap)
    largest, total = torch.empty_like(target), torch.empty_like(target)
    vocabulary = logits.shape[1]
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, CACHE_BYTES // (vocabulary * exact.itemsize)) * torch.get_num_threads()
    buffer = None if logits.dtype == exact else logits.new_empty(min(rows, len(logits)), vocabulary, dtype=exact)
    for start in range(0, len(logits), max(1, rows)):
        part, here = logits[start : start + rows], slice(start, start + rows)
        values = part if buffer is None else buffer[: len(part)].copy_(part)
        if scale != 1:
            values.mul_(scale)
        slope = None
        if softcap is not None:
            values.div_(softcap).tanh_()
            slope = 1 - values.square()
            values.mul_(softcap)
        torch.amax(values, 1, keepdim=True, out=largest[here])
        values.sub_(largest[here]).exp_()
        torch.sum(values, 1, keepdim=True, out=total[here])
        if gradient:
            values.div_(total[here] if scale == 1 else total[here] / scale)
            if slope is not None:
                values.mul_(slope)
            if buffer is not None:
                part.copy_(values)
    losses = (total.log() + (largest - target)).squeeze(1)
    if gradient:
        own = ((target - largest).exp() / total - 1) * scale
        if softcap is not None:
            own *= 1 - (target / softcap).square()
        logits[torch.arange(len(logits), device=logits.device), index[:, 0]] = own[:, 0].to(logits.dtype)
    if logits.device.type != "cpu":  # a CPU's rows all count, the others were dropped
        losses.masked_fill_(~scored, 0)
        if gradient:
            logits.masked_fill_(~scored[:, None], 0)
    return losses
