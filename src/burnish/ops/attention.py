"""Attention over rows laid end to end: each row attends to itself alone, and no padding is computed.

One function serves decoders and encoders. `register` hands it to transformers under the name `burnish`; the rows'
lengths reach it through `segments_of`, which the caller sets around the model's forward and backward passes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch

NAME = "burnish"
"""The attention function's name in transformers."""

#: Queries computed together where a window limits what they see.
_BLOCK = 128

#: What a model may hand to an attention function without changing what it computes here.
_HARMLESS = frozenset({
    "cache_position", "deterministic", "is_causal", "layer_idx", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings", "position_ids",
    "return_dict", "token_type_ids", "use_cache",
})  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """How many positions each row has, in the order in which the rows lie."""

    lengths: tuple[int, ...]

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of one length, computed together: first position, number of rows, their length."""
        found, start = [], 0
        for length, rows in groupby(self.lengths):
            count = len(list(rows))
            found.append((start, count, length))
            start += count * length
        return found

    @cached_property
    def total(self) -> int:
        """Positions in all."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths)

    def bounds(self, device: torch.device) -> torch.Tensor:
        """Return where each row begins, and the end: int32 [rows + 1] on `device`, copied there once."""
        made = self._bounds.get(device)
        if made is None:
            made = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32).to(device, non_blocking=True)
            self._bounds[device] = made
        return made

    @cached_property
    def _bounds(self) -> dict[torch.device, torch.Tensor]:
        return {}


@dataclass(frozen=True)
class Rule:
    """Which positions of a row see which.

    Args:
        causal: only earlier ones and itself.
        window: only those less than this far away; None is all. (transformers hands a window in this sense to decoders and
            encoders alike: ModernBERT's half window of 64 arrives as 65.)
        softcap: scores are squeezed to `softcap * tanh(score / softcap)`. Source: Gemma 2 report 2024, section 2.
    """

    causal: bool
    scale: float
    window: int | None = None
    softcap: float | None = None


_current: Segments | None = None


@contextmanager
def segments_of(lengths: Sequence[int] | None) -> Iterator[None]:
    """Let the rows of a model's attention have these lengths while the block runs, its backward pass included.

    Args:
        lengths: positions of each row; None: `set_segments` will say so inside the block.
    """
    global _current
    before = _current
    _current = None if lengths is None else Segments(tuple(lengths))
    try:
        yield
    finally:
        _current = before


def set_segments(lengths: Sequence[int]) -> None:
    """Say the rows' lengths inside `segments_of(None)`."""
    global _current
    _current = Segments(tuple(lengths))


def register() -> None:
    """Make the function known to transformers; models with `_attn_implementation = NAME` then call it without a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, model_attention)


def model_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the current segments, as transformers' attention interface asks.

    Args:
        query: [1, heads, positions, width]; key and value may have fewer heads, shared by groups.

    Returns:
        [1, positions, heads, width], and no attention weights.

    Raises:
        NotImplementedError: the model asks for something this function would have to leave out.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise NotImplementedError(f"{type(module).__name__} hands {', '.join(unknown)} to its attention")
    if _current is None or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == _current.total:
        raise NotImplementedError(f"{type(module).__name__} attends to something else than its own rows")
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = Rule(bool(causal), scale, sliding_window, softcap)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    return attention(query, key, value, _current, rule, dropout).transpose(1, 2), None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule, dropout: float = 0.0
) -> torch.Tensor:
    """Return softmax(scale * QK^T)V within each segment, [1, heads, positions, width], in the inputs' type.

    Source: Vaswani et al. 2017, equation 1.

    >>> query = torch.ones(1, 1, 3, 8)
    >>> value = torch.tensor([1.0, 2.0, 5.0])[None, None, :, None].expand(1, 1, 3, 8)
    >>> out = attention(query, query, value, Segments((2, 1)), Rule(causal=False, scale=1.0))
    >>> out[0, 0, :, 0].tolist()  # the first two see each other, the third only itself
    [1.5, 1.5, 5.0]
    """
    if dropout or rule.softcap is not None:
        return _by_scores(query, key, value, segments, rule, dropout)
    if query.is_cuda:
        return _varlen(query, key, value, segments, rule)
    if torch.compiler.is_compiling():
        lengths = torch.tensor(segments.lengths)
        return _compiled(query, key, value, lengths, rule.causal, rule.scale, rule.window or 0)[0]
    return _Flash.apply(query, key, value, segments, rule)


# -- pieces: which queries meet which keys ----------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _pieces(length: int, causal: bool, window: int | None) -> list[tuple[slice, slice]]:
    """Return which queries of a row meet which keys: all of them at once, or by blocks where a window leaves most out."""
    if window is None or length <= window:
        return [(slice(0, length), slice(0, length))]
    pieces = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        last = end if causal else min(length, end + window - 1)
        pieces.append((slice(start, end), slice(max(0, start - window + 1), last)))
    return pieces


@lru_cache(maxsize=64)
def _hidden(
    queries: int, keys: int, offset: int, causal: bool, window: int, kind: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return what is added to the scores so that unseen keys count nothing: [queries, keys]."""
    distance = torch.arange(queries, device=device)[:, None] + offset - torch.arange(keys, device=device)[None, :]
    seen = distance.abs() < window
    if causal:
        seen &= distance >= 0
    return torch.zeros(queries, keys, dtype=kind, device=device).masked_fill_(~seen, -math.inf)


def _added(rule: Rule, length: int, rows: slice, keys: slice, like: torch.Tensor) -> torch.Tensor | None:
    """Return the mask of a piece, or None where all is seen or `is_causal` says what is not."""
    if rule.window is None or length <= rule.window:
        return None
    sizes = (rows.stop - rows.start, keys.stop - keys.start, rows.start - keys.start)
    return _hidden(*sizes, rule.causal, rule.window, like.dtype, like.device)


def _run(tensor: torch.Tensor, start: int, count: int, length: int) -> torch.Tensor:
    """Return `count` rows of `length` positions as a view [rows, heads, length, width]."""
    return tensor[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)


# -- CPU: torch's flash kernel, run by run ----------------------------------------------------------------------------


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [1, heads, positions, width] and the log of each softmax's sum [heads, positions], float32."""
    _, heads, total, _ = query.shape
    out = query.new_empty(total, heads, value.shape[-1])
    sums = query.new_empty(heads, total, dtype=torch.float32)
    whole, sums_whole = out.transpose(0, 1)[None], sums[None, :, :, None]
    for start, count, length in segments.runs:
        q, k, v, o, s = (_run(tensor, start, count, length) for tensor in (query, key, value, whole, sums_whole))
        for rows, keys in _pieces(length, rule.causal, rule.window):
            mask = _added(rule, length, rows, keys, q)
            result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, rule.causal and mask is None,
                attn_mask=mask, scale=rule.scale,
            )  # fmt: skip
            o[:, :, rows] = result
            s[:, :, rows, 0] = log_sum
    return out.transpose(0, 1)[None], sums


def _backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    sums: torch.Tensor, segments: Segments, rule: Rule,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradients of query, key and value.

    In float32 whatever the inputs are: the bfloat16 kernel is both rounder and, on processors with AMX, many times slower
    (docs/log.md).
    """
    kind = query.dtype
    gradient, query, key, value, out = (tensor.float() for tensor in (gradient, query, key, value, out))
    grads = [torch.zeros_like(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value)]
    for start, count, length in segments.runs:
        views = [_run(tensor, start, count, length) for tensor in (gradient, query, key, value, out, *grads)]
        g, q, k, v, o, dq, dk, dv = views
        s = _run(sums[None, :, :, None], start, count, length)[..., 0]
        for rows, keys in _pieces(length, rule.causal, rule.window):
            mask = _added(rule, length, rows, keys, q)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], o[:, :, rows], s[:, :, rows], 0.0,
                rule.causal and mask is None, attn_mask=mask, scale=rule.scale,
            )  # fmt: skip
            dq[:, :, rows] = parts[0]
            dk[:, :, keys] += parts[1]
            dv[:, :, keys] += parts[2]
    return tuple(grad.to(kind) for grad in grads)  # type: ignore[return-value]


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, segments: Segments, rule: Rule) -> torch.Tensor:
        out, sums = _forward(query, key, value, segments, rule)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.rule = segments, rule
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return (*_backward(gradients[0], *ctx.saved_tensors, ctx.segments, ctx.rule), None, None)


# The same as one operator that the compiler does not look into. A window of 0 is none; lengths of 0 fill up a fixed number.


def _unpacked(lengths: torch.Tensor, causal: bool, scale: float, window: int) -> tuple[Segments, Rule]:
    return Segments(tuple(length for length in lengths.tolist() if length)), Rule(causal, scale, window or None)


@torch.library.custom_op("burnish::attention", mutates_args=())
def _compiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, causal: bool, scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return _forward(query, key, value, *_unpacked(lengths, causal, scale, window))


@_compiled.register_fake
def _(query: Any, key: Any, value: Any, lengths: Any, causal: bool, scale: float, window: int) -> Any:
    _, heads, total, _ = query.shape
    out = query.new_empty(total, heads, value.shape[-1]).transpose(0, 1)[None]
    return out, query.new_empty(heads, total, dtype=torch.float32)


@torch.library.custom_op("burnish::attention_backward", mutates_args=())
def _compiled_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    sums: torch.Tensor, lengths: torch.Tensor, causal: bool, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return _backward(gradient, query, key, value, out, sums, *_unpacked(lengths, causal, scale, window))


@_compiled_backward.register_fake
def _(
    gradient: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, lengths: Any, causal: bool, scale: float,
    window: int,
) -> Any:  # fmt: skip
    return tuple(torch.empty_like(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, lengths, *ctx.rule = inputs
    ctx.save_for_backward(query, key, value, *output, lengths)


def _differentiate(ctx: Any, gradient: Any, _: Any) -> Any:
    return (*_compiled_backward(gradient, *ctx.saved_tensors, *ctx.rule), None, None, None, None)


_compiled.register_autograd(_differentiate, setup_context=_keep)


# -- GPU: torch's kernel for rows of many lengths ---------------------------------------------------------------------


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if rule.window is None else rule.window - 1
    taken = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"scale": rule.scale}
    if "window_size" in taken:
        options["window_size"] = (reach, 0 if rule.causal else reach)
    elif rule.window is None:
        options["is_causal"] = rule.causal
    else:
        raise NotImplementedError("this version of torch has no window in its attention for rows of many lengths")
    bounds = segments.bounds(query.device)
    parts = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = varlen_attn(*parts, bounds, bounds, segments.longest, segments.longest, **options)
    return out.transpose(0, 1)[None]


# -- scores written out: for what no kernel offers --------------------------------------------------------------------


def _by_scores(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule, dropout: float
) -> torch.Tensor:
    """Attend with the scores in memory, in float32; autograd makes the gradient."""
    kind = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    outputs = []
    for start, count, length in segments.runs:
        q, k, v = (_run(tensor, start, count, length) for tensor in (query, key, value))
        pieces = []
        for rows, keys in _pieces(length, rule.causal, rule.window):
            scores = (q[:, :, rows] * rule.scale) @ k[:, :, keys].transpose(-1, -2)
            if rule.softcap is not None:
                scores = rule.softcap * torch.tanh(scores / rule.softcap)
            window = min(rule.window or length, length)
            if rule.causal or window < length:
                sizes = (rows.stop - rows.start, keys.stop - keys.start, rows.start - keys.start)
                scores = scores + _hidden(*sizes, rule.causal, window, scores.dtype, scores.device)
            weights = scores.softmax(-1)
            if dropout:
                weights = torch.dropout(weights, dropout, train=True)
            pieces.append(weights @ v[:, :, keys])
        outputs.append(torch.cat(pieces, 2).transpose(1, 2).flatten(0, 1))  # [positions, heads, width]
    return torch.cat(outputs).to(kind).transpose(0, 1)[None]
