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
from itertools import accumulate, chain, groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from burnish.ops.dropout import keep_mask

NAME = "burnish"
"""The attention function's name in transformers."""
PADDED = "burnish_padded"
"""The name of the one for padded rows that is exact and fast in a backward pass on processors."""

#: Queries computed together where a window limits what they see.
_BLOCK = 128

#: torch's kernel for CPUs takes this many keys at once; those that are left over take as long as many more.
_STEP = 16

#: What a model may hand to an attention function without changing what it computes here.
_HARMLESS = frozenset({
    "cache_position", "deterministic", "is_causal", "layer_idx", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings", "position_ids",
    "return_dict", "token_type_ids", "use_cache",
})  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Neighbouring rows computed together, filled up to one length.

    Args:
        start: first position of the group among the filled-up positions.
        count: rows.
        length: to which they are filled up.
        lengths: of each row.
    """

    start: int
    count: int
    length: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How rows of many lengths become few batches for the kernels.

    Args:
        index: for each filled-up position the one it is copied from; None: nothing is filled up.
        back: for each real position where it lies among the filled-up ones.
        idle: the filled-up positions without a real one.
    """

    groups: tuple[Group, ...]
    index: torch.Tensor | None = None
    back: torch.Tensor | None = None
    idle: torch.Tensor | None = None

    def spread(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return [1, heads, positions, width] with the filled-up positions, copies of real ones in the idle places."""
        if self.index is None:
            return tensor
        return tensor[0].transpose(0, 1).index_select(0, self.index.to(tensor.device)).transpose(0, 1)[None]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return [1, heads, filled-up positions, width] without the idle places."""
        if self.back is None:
            return tensor
        return tensor[0].transpose(0, 1).index_select(0, self.back.to(tensor.device)).transpose(0, 1)[None]

    def zero_idle(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a spread tensor with zeros in the idle places."""
        return tensor if self.idle is None else tensor.index_fill_(2, self.idle.to(tensor.device), 0)


@dataclass(frozen=True)
class Costs:
    """Microseconds that a pass of attention takes, by which rows are put together (measured: docs/log.md).

    Args:
        call: of a call of the kernel.
        position: of a position in it.
        pair: of a pair of positions.
        odd: of a position and a key that is left over when the keys are taken by `_STEP`.
        copy: of a position that is copied to lie beside rows of another length.
    """

    call: float
    position: float
    pair: float
    odd: float
    copy: float

    def of(self, length: int) -> float:
        """Return what a row of this length costs."""
        return length * (self.position + self.pair * length + self.odd * (length % _STEP))

    def fill(self, length: int) -> int:
        """Return the length to which a row of this one is best filled up.

        >>> FORWARD.fill(17), FORWARD.fill(31), BACKWARD.fill(31)
        (17, 32, 31)
        """
        longer = length + -length % _STEP
        return longer if self.of(longer) + self.copy * longer < self.of(length) else length


FORWARD = Costs(call=60, position=1.3, pair=0.01, odd=0.12, copy=0.35)
BACKWARD = Costs(call=100, position=2.7, pair=0.03, odd=0, copy=0)


@dataclass(frozen=True)
class Segments:
    """How many positions each row has, in the order in which the rows lie."""

    lengths: tuple[int, ...]

    @cached_property
    def total(self) -> int:
        """Positions in all."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Positions of the longest row."""
        return max(self.lengths)

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        return [(len(list(rows)), length) for length, rows in groupby(self.lengths)]

    @cached_property
    def exact(self) -> Layout:
        """Rows of one length together, nothing filled up."""
        groups, start = [], 0
        for count, length in self._runs:
            groups.append(Group(start, count, length, (length,) * count))
            start += count * length
        return Layout(tuple(groups))

    @cached_property
    def _filled(self) -> dict[Costs, Layout]:
        return {}

    def filled(self, costs: Costs) -> Layout:
        """Neighbours of like length together, filled up to a length that suits the kernel, where that costs less."""
        if costs not in self._filled:
            self._filled[costs] = self._fill(costs)
        return self._filled[costs]

    def _fill(self, costs: Costs) -> Layout:
        groups: list[Group] = []
        index, back, first, place, run = [], [], 0, 0, 0
        for end in _grouped(self._runs, costs):
            lengths = [length for count, length in self._runs[run:end] for _ in range(count)]
            full, run = costs.fill(max(lengths)), end
            groups.append(Group(place, len(lengths), full, tuple(lengths)))
            for length in lengths:
                index += [range(first, first + length), [first] * (full - length)]
                back.append(range(place, place + length))
                first, place = first + length, place + full
        if place == first:
            return self.exact
        flat = np.fromiter(chain.from_iterable(index), np.int64, place)
        real = np.fromiter(chain.from_iterable(back), np.int64, first)
        idle = np.setdiff1d(np.arange(place), real, assume_unique=True)
        return Layout(tuple(groups), *(torch.from_numpy(numbers) for numbers in (flat, real, idle)))

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


def _grouped(runs: list[tuple[int, int]], costs: Costs) -> list[int]:
    """Return where to cut runs (rows, length) into groups: the end of each, so that the whole takes the least time."""
    best, start_of = [0.0], [0]
    for end in range(1, len(runs) + 1):
        rows, longest, choices = 0, 0, []
        for start in range(end - 1, max(-1, end - 33), -1):
            rows, longest = rows + runs[start][0], max(longest, runs[start][1])
            choices.append((best[start] + costs.call + rows * costs.of(costs.fill(longest)), start))
        cost, start = min(choices)
        best.append(cost)
        start_of.append(start)
    ends = [len(runs)]
    while start_of[ends[-1]] > 0:
        ends.append(start_of[ends[-1]])
    return ends[::-1]


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


class KeysFound(Exception):
    """Leaves a layer once its attention has all keys and values."""


class Glance:
    """Attention of one query of each row, for a layer of which no more is used.

    The layer is run twice: on all positions up to its attention (`keys`), then on the positions asked for (`answers`).

    Args:
        lengths: of the rows.
        places: of the positions asked for, one of each row, among the rows laid end to end; the last one is repeated up
            to a power of two, and what comes of the repetitions is idle.
    """

    def __init__(self, lengths: Sequence[int], places: np.ndarray, device: torch.device):
        numbers = np.array(lengths)
        starts = np.concatenate([[0], np.cumsum(numbers)[:-1]])
        rows = np.repeat(np.arange(len(numbers)), numbers)
        within = np.arange(numbers.sum()) - starts[rows]
        move = lambda array: torch.from_numpy(array).to(device, non_blocking=True)  # noqa: E731
        filled = 1 << (len(places) - 1).bit_length()  # few numbers occur: kernels are made for each (docs/log.md)
        self.places = move(np.pad(places, (0, filled - len(places)), mode="edge"))
        self._rows, self._slots = move(rows), move(rows * numbers.max() + within)
        self._ahead, self._within = move(np.arange(numbers.sum()) - places[rows]), move(within)
        self._longest = int(numbers.max())
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self.is_answering = False
        """Whether the layer is in its second run."""

    @contextmanager
    def keys(self) -> Iterator[None]:
        """Catch the keys and values of the layer that is run inside, and leave it there."""
        with self._current():
            try:
                yield
            except KeysFound:
                return
        raise NotImplementedError("a layer without attention")

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Answer the attention of the layer that is run inside, once, with the keys and values caught before."""
        self.is_answering = True
        with self._current():
            yield

    @contextmanager
    def _current(self) -> Iterator[None]:
        global _glance
        before, _glance = _glance, self
        try:
            yield
        finally:
            _glance = before

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, dropout: float,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Return softmax(scale * QK^T)V of the queries [1, heads, rows, width] over the keys of their rows."""
        if not self.is_answering:
            self._keys, self._values = key, value
            raise KeysFound
        keys, values, self._keys, self._values = self._keys, self._values, None, None
        if keys is None or values is None or query.shape[2] != len(self.places):
            raise NotImplementedError("a layer that attends more than once")
        total, rows = len(self._rows), len(self.places)
        q, k, v = (tensor[0].transpose(0, 1).float() for tensor in (query, keys[:, :, :total], values[:, :, :total]))
        scores = (q.index_select(0, self._rows) * k).sum(-1) * rule.scale  # [positions, heads]
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if bias is not None:
            scores = scores + bias[0, :, self._within - self._ahead, self._within].T.float()
        if rule.causal:
            scores = scores.masked_fill((self._ahead > 0)[:, None], -math.inf)
        if rule.window is not None:
            scores = scores.masked_fill((self._ahead.abs() >= rule.window)[:, None], -math.inf)
        padded = scores.new_full((rows * self._longest, scores.shape[1]), -math.inf).index_copy(0, self._slots, scores)
        shares = padded.unflatten(0, (rows, self._longest)).softmax(1).flatten(0, 1).index_select(0, self._slots)
        if dropout:
            shares = shares * keep_mask(shares.shape, dropout, shares.device) / (1 - dropout)
        out = v.new_zeros(rows, *v.shape[1:]).index_add(0, self._rows, shares[..., None] * v)
        return out.to(query.dtype).transpose(0, 1)[None]


_glance: Glance | None = None
_current: Segments | None = None
_lengths: torch.Tensor | None = None
"""The current lengths as compiled code reads them: zeros fill up a number that seldom changes."""


@contextmanager
def segments_of(lengths: Sequence[int] | None) -> Iterator[None]:
    """Let the rows of a model's attention have these lengths while the block runs, its backward pass included.

    Args:
        lengths: positions of each row; None: `set_segments` will say so inside the block.
    """
    global _current, _lengths
    before = _current, _lengths
    _current = _lengths = None
    if lengths is not None:
        set_segments(lengths)
    try:
        yield
    finally:
        _current, _lengths = before


def set_segments(lengths: Sequence[int]) -> None:
    """Say the rows' lengths inside `segments_of(None)`."""
    global _current, _lengths
    _current = Segments(tuple(lengths))
    _lengths = torch.tensor([*lengths, *[0] * ((1 << len(lengths).bit_length()) - len(lengths))])


def is_end_to_end() -> bool:
    """Return whether the rows that are computed lie end to end."""
    return _current is not None


def register() -> None:
    """Make the function known to transformers; models with `_attn_implementation = NAME` then call it without a mask."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, model_attention)
    AttentionInterface.register(PADDED, padded_attention)
    AttentionMaskInterface.register(PADDED, sdpa_mask)


def padded_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **others: Any
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' "sdpa" does, but in float32 where a backward pass follows.

    torch's kernel for bfloat16 on processors is many times slower there, and rounder (docs/log.md).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not torch.is_grad_enabled() or not any(given.requires_grad for given in (query, key, value)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    q, k, v, mask = (_float32(given) for given in (query, key, value, attention_mask))
    out, _ = sdpa_attention_forward(module, q, k, v, mask, **{name: _float32(given) for name, given in others.items()})
    return out.to(query.dtype), None


def _float32(given: Any) -> Any:
    return given.float() if isinstance(given, torch.Tensor) and given.is_floating_point() else given


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
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the current segments, as transformers' attention interface asks.

    Args:
        query: [1, heads, positions, width]; key and value may have fewer heads, shared by groups.
        position_bias: added to the scores of any row's positions, [1, heads, positions, positions] of the longest row.

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
    compiling = torch.compiler.is_compiling()
    answering = _glance is not None and _glance.is_answering
    if not (compiling or answering) and (
        _current is None or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == _current.total
    ):
        raise NotImplementedError(f"{type(module).__name__} attends to something else than its own rows")
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    rule = Rule(bool(causal), scale, sliding_window, softcap)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    if _glance is not None:
        return _glance.attend(query, key, value, rule, dropout, position_bias).transpose(1, 2), None
    if compiling and not dropout and softcap is None and position_bias is None and not query.is_cuda:
        window = sliding_window or 0
        out, _ = torch.ops.burnish.attention(query, key, value, _lengths, rule.causal, scale, window)
        return out.transpose(1, 2), None
    assert _current is not None  # tried above; compiled code trusts it
    if position_bias is not None:  # idle positions may make a row that is longer than any real one
        beyond = max(0, _current.longest - position_bias.shape[-1])
        position_bias = functional.pad(position_bias, (0, beyond, 0, beyond))
    return attention(query, key, value, _current, rule, dropout, position_bias).transpose(1, 2), None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule, dropout: float = 0.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return softmax(scale * QK^T + bias)V within each segment, [1, heads, positions, width], in the inputs' type.

    Args:
        bias: [1, heads, longest, longest]: of the first positions of each segment.

    Source: Vaswani et al. 2017, equation 1.

    >>> query = torch.ones(1, 1, 3, 8)
    >>> value = torch.tensor([1.0, 2.0, 5.0])[None, None, :, None].expand(1, 1, 3, 8)
    >>> out = attention(query, query, value, Segments((2, 1)), Rule(causal=False, scale=1.0))
    >>> out[0, 0, :, 0].tolist()  # the first two see each other, the third only itself
    [1.5, 1.5, 5.0]
    """
    written_out = dropout or rule.softcap is not None or bias is not None
    if query.is_cuda and not written_out and _varlen_takes(query):
        return _varlen(query, key, value, segments, rule)
    if written_out or query.is_cuda:
        return _Scores.apply(query, key, value, bias, segments, rule, dropout)
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


def _added(
    rule: Rule, group: Group, rows: slice, keys: slice, like: torch.Tensor, *, causal: bool
) -> torch.Tensor | None:
    """Return what is added to a piece's scores to hide keys, or None.

    Args:
        causal: hide later keys too; where the kernel does that itself it need not be done here.
    """
    queries = rows.stop - rows.start
    if rule.window is not None and group.length > rule.window:
        offset = rows.start - keys.start
        return _hidden(queries, keys.stop - keys.start, offset, rule.causal, rule.window, like.dtype, like.device)
    if rule.causal:  # idle places lie behind a row, where it does not look
        return _hidden(queries, queries, 0, True, queries, like.dtype, like.device) if causal else None
    if set(group.lengths) == {group.length}:
        return None
    beyond = torch.arange(group.length) >= torch.tensor(group.lengths)[:, None]
    mask = torch.zeros(beyond.shape, dtype=like.dtype).masked_fill_(beyond, -math.inf)
    return mask[:, None, None, :].to(like.device)


def _layout(segments: Segments, rule: Rule, costs: Costs) -> Layout:
    """Return how the rows are batched; where a window hides keys, nothing is filled up."""
    return segments.exact if rule.window is not None and segments.longest > rule.window else segments.filled(costs)


def _rows(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return a group's rows as a view [rows, heads, length, width]."""
    part = tensor[0, :, group.start : group.start + group.count * group.length]
    return part.unflatten(1, (group.count, group.length)).transpose(0, 1)


# -- CPU: torch's flash kernel, run by run ----------------------------------------------------------------------------


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [1, heads, positions, width] and the log of each softmax's sum [heads, positions], float32."""
    layout = _layout(segments, rule, FORWARD)
    query, key, value = (layout.spread(tensor) for tensor in (query, key, value))
    outs, sums = [], []
    for group in layout.groups:
        q, k, v = (_rows(tensor, group) for tensor in (query, key, value))
        parts = []
        for rows, keys in _pieces(group.length, rule.causal, rule.window):
            mask = _added(rule, group, rows, keys, q, causal=False)
            parts.append(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, rule.causal and mask is None,
                attn_mask=mask, scale=rule.scale,
            ))  # fmt: skip
        for found, of_pieces in zip((outs, sums), zip(*parts, strict=True), strict=True):
            found.append(torch.cat(of_pieces, 2) if len(of_pieces) > 1 else of_pieces[0])
    out = _end_to_end([out.transpose(1, 2) for out in outs]).transpose(0, 1)[None]
    total = _end_to_end([log_sum.transpose(1, 2) for log_sum in sums]).transpose(0, 1)[None, :, :, None]
    return layout.gather(out), layout.gather(total)[0, :, :, 0].contiguous()


def _end_to_end(groups: list[torch.Tensor]) -> torch.Tensor:
    """Return groups [rows, length, ...] as [positions, ...], one after the other."""
    flat = [group.flatten(0, 1) for group in groups]
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def flash_gradients(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    sums: torch.Tensor, segments: Segments, rule: Rule,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradients of query, key and value.

    In float32 whatever the inputs are: the bfloat16 kernel is both rounder and, on processors with AMX, many times slower
    (docs/log.md).
    """
    kind, layout = query.dtype, _layout(segments, rule, BACKWARD)
    gradient, query, key, value, out = (layout.spread(t).float() for t in (gradient, query, key, value, out))
    gradient, sums = layout.zero_idle(gradient), layout.spread(sums[None, :, :, None])
    grads = _gradients_like(segments, rule, query, key, value)
    for group in layout.groups:
        views = [_rows(tensor, group) for tensor in (gradient, query, key, value, out, *grads)]
        g, q, k, v, o, dq, dk, dv = views
        s = _rows(sums, group)[..., 0]
        for rows, keys in _pieces(group.length, rule.causal, rule.window):
            mask = _added(rule, group, rows, keys, q, causal=False)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], o[:, :, rows], s[:, :, rows], 0.0,
                rule.causal and mask is None, attn_mask=mask, scale=rule.scale,
            )  # fmt: skip
            dq[:, :, rows] = parts[0]
            _put(dk, keys, parts[1])
            _put(dv, keys, parts[2])
    return tuple(layout.gather(grad).to(kind) for grad in grads)  # type: ignore[return-value]


def _gradients_like(segments: Segments, rule: Rule, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return room for gradients, laid out in memory position by position as a model's projections are.

    Zeros where a window cuts rows into pieces, since a key then collects from several of them.
    """
    cut = rule.window is not None and segments.longest > rule.window
    make = torch.zeros if cut else torch.empty
    return [make(t.transpose(1, 2).shape, dtype=t.dtype, device=t.device).transpose(1, 2) for t in tensors]


def _put(gradient: torch.Tensor, keys: slice, part: torch.Tensor) -> None:
    """Put in what a piece gives for its keys; add it where another piece may have the same ones."""
    if part.shape[2] == gradient.shape[2]:
        gradient.copy_(part)
    else:
        gradient[:, :, keys] += part


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, segments: Segments, rule: Rule) -> torch.Tensor:
        out, sums = flash(query, key, value, segments, rule)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.rule = segments, rule
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        return (*flash_gradients(gradients[0], query, key, value, out, sums, ctx.segments, ctx.rule), None, None)


# -- GPU: torch's kernel for rows of many lengths ---------------------------------------------------------------------


def _varlen_takes(query: torch.Tensor) -> bool:
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


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
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out: Any = varlen_attn(q, k, v, bounds, bounds, segments.longest, segments.longest, **options)
    return out.transpose(0, 1)[None]


# -- scores written out: for what no kernel offers --------------------------------------------------------------------


class _Scores(torch.autograd.Function):
    """Attention with the scores in memory, in float32: dropout, squeezed scores, a bias that learns."""

    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, bias: Any, segments: Segments, rule: Rule, dropout: float
    ) -> torch.Tensor:
        ctx.kind, ctx.segments, ctx.rule, ctx.scale = query.dtype, segments, rule, 1 / (1 - dropout)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        layout = _layout(segments, rule, BACKWARD)
        query, key, value = (layout.spread(tensor).float() for tensor in (query, key, value))
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1]).transpose(0, 1)[None]
        kept = []
        for group in layout.groups:
            q, k, v, o = (_rows(tensor, group) for tensor in (query, key, value, out))
            for rows, keys in _pieces(group.length, rule.causal, rule.window):
                scores = (q[:, :, rows] * rule.scale) @ k[:, :, keys].transpose(-1, -2)
                if rule.softcap is not None:
                    scores = scores.div_(rule.softcap).tanh_()
                    kept.append(scores)
                    scores = scores * rule.softcap
                if bias is not None:
                    scores += bias[:, :, rows, keys]
                mask = _added(rule, group, rows, keys, scores, causal=True)
                weights = (scores if mask is None else scores.add_(mask)).softmax(-1)
                kept.append(weights)
                if dropout:
                    kept.append(keep_mask(weights.shape, dropout, weights.device))
                    weights = (weights * kept[-1]).mul_(ctx.scale)
                o[:, :, rows] = weights @ v[:, :, keys]
        ctx.dropout = bool(dropout)
        ctx.save_for_backward(query, key, value, *kept)
        return layout.gather(out).to(ctx.kind)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (query, key, value, *saved), rule, layout = (
            ctx.saved_tensors,
            ctx.rule,
            _layout(ctx.segments, ctx.rule, BACKWARD),
        )
        gradient = layout.zero_idle(layout.spread(gradients[0]).float())
        kept, grads = iter(saved), _gradients_like(ctx.segments, rule, query, key, value)
        of_bias = query.new_zeros(ctx.bias[0]) if ctx.bias else None
        for group in layout.groups:
            g, q, k, v, dq, dk, dv = (_rows(tensor, group) for tensor in (gradient, query, key, value, *grads))
            for rows, keys in _pieces(group.length, rule.causal, rule.window):
                squeezed = next(kept) if rule.softcap is not None else None
                weights = next(kept)
                of_weights = g[:, :, rows] @ v[:, :, keys].transpose(-1, -2)
                if ctx.dropout:
                    keep = next(kept)
                    of_weights = of_weights.mul_(keep).mul_(ctx.scale)
                    _put(dv, keys, (weights * keep).mul_(ctx.scale).transpose(-1, -2) @ g[:, :, rows])
                else:
                    _put(dv, keys, weights.transpose(-1, -2) @ g[:, :, rows])
                of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32)
                if of_bias is not None:
                    of_bias[0, :, rows, keys] += of_scores.sum(0)
                if squeezed is not None:
                    of_scores = of_scores * (1 - squeezed * squeezed)
                of_scores = of_scores.mul_(rule.scale)
                dq[:, :, rows] = of_scores @ k[:, :, keys]
                _put(dk, keys, of_scores.transpose(-1, -2) @ q[:, :, rows])
        of_bias = None if of_bias is None else of_bias.to(ctx.bias[1])
        return (*(layout.gather(grad).to(ctx.kind) for grad in grads), of_bias, None, None, None)
