"""Attention over rows laid end to end as one operator that the compiler does not look into.

Importing this module defines `torch.ops.burnish.attention`. A window of 0 is none; lengths of 0 fill up a fixed number.
"""

from __future__ import annotations

from typing import Any

import torch

from burnish.ops.attention import Rule, Segments, flash, flash_gradients


def _unpacked(lengths: torch.Tensor, causal: bool, scale: float, window: int) -> tuple[Segments, Rule]:
    return Segments(tuple(length for length in lengths.tolist() if length)), Rule(causal, scale, window or None)


@torch.library.custom_op("burnish::attention", mutates_args=())
def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, causal: bool, scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return flash(query, key, value, *_unpacked(lengths, causal, scale, window))


@_attention.register_fake
def _(query: Any, key: Any, value: Any, lengths: Any, causal: bool, scale: float, window: int) -> Any:
    _, heads, total, _ = query.shape
    out = query.new_empty(total, heads, value.shape[-1]).transpose(0, 1)[None]
    return out, query.new_empty(heads, total, dtype=torch.float32)


@torch.library.custom_op("burnish::attention_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    sums: torch.Tensor, lengths: torch.Tensor, causal: bool, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return flash_gradients(gradient, query, key, value, out, sums, *_unpacked(lengths, causal, scale, window))


@_gradients.register_fake
def _(
    gradient: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, lengths: Any, causal: bool, scale: float,
    window: int,
) -> Any:  # fmt: skip
    return tuple(torch.empty_like(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, lengths, *ctx.rule = inputs
    ctx.save_for_backward(query, key, value, *output, lengths)


def _differentiate(ctx: Any, gradient: Any, _: Any) -> Any:
    return (*_gradients(gradient, *ctx.saved_tensors, *ctx.rule), None, None, None, None)


_attention.register_autograd(_differentiate, setup_context=_keep)
