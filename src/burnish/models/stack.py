"""A model's stack of repeated layers, and what burnish does around each of them.

Models stay transformers' own: only the `forward` of the stack's layers is wrapped. In between rows are laid end to end
without their padding, a frozen prefix is replayed instead of computed again, and a layer may be compiled or recomputed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from burnish.errors import UserError
from burnish.models.backbone import backbone_of
from burnish.models.body import body_of
from burnish.ops import attention
from burnish.task import Batch

#: What holds for the positions of any row, so that it stays as it is when rows are laid end to end.
_OF_ANY_ROW = frozenset({"position_bias"})

#: What a backbone inside a larger model gives, such as in a detector.
MAPS = "feature_maps"

#: What a part that makes hidden states gives.
_HIDDEN = "last_hidden_state"

#: How far outputs of rows laid end to end may lie from those of the rows alone, relative, in float32.
TOLERANCE = 1e-4


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the model's repeated layers: the longest list of one class.

    Raises:
        UserError: the model has none.
    """
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        repeated = isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
        if repeated and (best is None or len(module) > len(best[1])):
            best = name, module
    if best is None:
        raise UserError(f"freeze.layers: {type(model).__name__} has no stack of layers; use --freeze.pattern.")
    return best


def filler(lengths: Sequence[int]) -> int:
    """Return how many idle positions follow ragged rows, so that few different totals occur: under 4 % of many.

    Kernels for matrix products are chosen, and on CPUs with AMX generated, for each new number of rows, which costs as
    much as several products (docs/log.md). Rows of one length come in few totals anyway.

    >>> filler([700, 15]), filler([16, 16]), filler([7, 15])
    (21, 0, 10)
    """
    total = sum(lengths)
    if len(set(lengths)) == 1:
        return 0
    step = max(32, 1 << total.bit_length() >> 6)
    return -total % step


@dataclass
class Passage:
    """One pass of some rows through the stack.

    Args:
        lengths: positions of each row; None: every row has all positions.
        stored: what the frozen prefix gives for these rows, laid end to end: [positions, width].
    """

    lengths: Sequence[int] | None
    stored: torch.Tensor | None = None
    reads: str | None = None
    """The one position of each row that is read above the layers, "first" or "last"; None: any may be."""
    shape: tuple[int, int] | None = None
    """Rows and positions of the padded batch, known when it enters the stack."""
    index: torch.Tensor | None = None
    """Where each position lies in the padded batch, idle ones anywhere; None if nothing is padded."""
    real: int = 0
    """Positions that are not idle, where something is padded."""
    glance: attention.Glance | None = None
    """The last layer's attention, where one position of each row is read."""
    gathered: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """By id, what was handed to a layer beside the hidden states, and the same without padding."""

    def enter(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the rows' hidden states [rows, positions, width] end to end: [1, all positions, width].

        Where the frozen prefix is stored, what comes in is a stand-in, and what is stored comes out.
        """
        rows, longest = self.shape = (hidden.shape[0], hidden.shape[1])
        if self.lengths is None:
            attention.set_segments([longest] * rows)
        lengths = self.lengths or [longest] * rows
        if len(lengths) != rows or max(lengths) > longest:
            raise NotImplementedError("the rows reach the layers in another shape than they had")
        if sum(lengths) < rows * longest:
            self.real = sum(lengths)
            places = np.zeros(self.real + filler(lengths), np.int64)
            places[: self.real] = np.flatnonzero(np.arange(longest) < np.array(lengths)[:, None])
            self.index = torch.from_numpy(places).to(hidden.device, non_blocking=True)
        if self.reads:
            self.glance = attention.Glance(lengths, read_of(lengths, self.reads), hidden.device)
        if self.stored is not None:
            return nn.functional.pad(self.stored, (0, 0, 0, filler(lengths)))[None]
        return self.flat(hidden)[None]

    def leave(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [1, all positions, width] as the padded batch again, zeros where there is padding.

        A copy, not a view: FSDP2 hangs its hook for the backward pass on what a layer returns.
        """
        assert self.shape is not None  # set on entering
        rows, longest = self.shape
        if self.index is None:
            return hidden[0].unflatten(0, (rows, longest)).clone()
        whole = hidden.new_zeros(rows * longest, *hidden.shape[2:])
        return (
            whole.index_copy(0, self.index[: self.real], hidden[0, : self.real]).unflatten(0, (rows, longest)).clone()
        )

    def leave_read(self, hidden: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """Return what the last layer gives for the positions that are read, [1, rows, width], as the padded batch."""
        assert self.shape is not None and self.glance is not None  # set on entering
        rows, longest = self.shape
        places = self.glance.places[:rows]
        places = places if self.index is None else self.index.index_select(0, places)
        whole = hidden.new_full((rows * longest, *hidden.shape[2:]), elsewhere)
        return whole.index_copy(0, places, hidden[0, :rows]).unflatten(0, (rows, longest))

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor [rows or 1, positions, ...] as [all positions, ...]."""
        assert self.shape is not None  # set on entering
        tensor = tensor.expand(self.shape[0], *tensor.shape[1:]).flatten(0, 1)
        return tensor if self.index is None else tensor.index_select(0, self.index)

    def gather(self, value: Any) -> Any:
        """Return what a layer gets beside the hidden states, such as rotary angles, without the padding."""
        assert self.shape is not None  # set on entering
        if isinstance(value, tuple | list):
            return type(value)(self.gather(part) for part in value)
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return value
        if value.shape[0] not in (1, self.shape[0]) or value.shape[1] != self.shape[1]:
            return value
        if id(value) not in self.gathered:  # every layer gets the same tensors; they are kept, so an id stays theirs
            self.gathered[id(value)] = value, self.flat(value)[None]
        return self.gathered[id(value)][1]

    def read(self, value: Any) -> Any:
        """Return what `gather` returned for the positions that are read only."""
        assert self.glance is not None  # asked for where it is
        if isinstance(value, tuple | list):
            return type(value)(self.read(part) for part in value)
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return value
        total = self.index.shape[0] if self.index is not None else math.prod(self.shape or ())
        return value.index_select(1, self.glance.places) if value.shape[:2] == (1, total) else value


def read_of(lengths: Sequence[int], reads: str) -> np.ndarray:
    """Return where the first or the last position of each row lies among the rows laid end to end.

    >>> read_of([3, 2], "first").tolist(), read_of([3, 2], "last").tolist()
    ([0, 3], [2, 4])
    """
    ends = np.cumsum(lengths)
    return ends - 1 if reads == "last" else ends - np.array(lengths)


class _Reached(Exception):
    """Leaves a forward pass where the frozen prefix ends."""

    def __init__(self, hidden: torch.Tensor):
        self.hidden = hidden


#: What a model raises when rows reach it in a form it was not written for.
_MISFITS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError)

Forward = Callable[[Batch], Any]
"""Computes a model on a batch; what it returns is a scalar or nothing."""


class Stack:
    """The stack of a model, wrapped once.

    Args:
        model: any transformers model with repeated layers.

    Raises:
        UserError: the model has no stack.
    """

    def __init__(self, model: Any):
        self.name, self.layers = find_stack(model)
        self.packed = False
        """Whether rows are laid end to end; a caller decides it by `refusal`."""
        self.graphs = False
        """Whether the layers are CUDA graphs, whose results are overwritten by those of the next micro-batch."""
        self.reads: str | None = None
        """The one position of each row that is read above the layers, "first" or "last"; see `find_read`."""
        self.depth = 0
        """How many of the lowest layers are frozen together with all that lies below them, and can be replayed."""
        self.output: str | None = None
        """Which part of the backbone's output is replayed where all of the backbone is frozen; None: that of a layer."""
        self.backbone: nn.Module | None = None if body_of(model) is model else body_of(model)
        self.apart = False
        """Whether rows are padded and a part of the model is replayed: the backbone in it, its encoder, or all but the head."""
        self._output_type: Any = None
        self._map: tuple[int, ...] = ()
        """Height and width of the map that a backbone gives, where that is replayed."""
        self.width, self.kind = 0, torch.float32
        """Size and type of what the frozen layers give for a position."""
        self._model = model
        self._passage: Passage | None = None
        self._stop = False
        self._entry: list[nn.Module] = []
        self._tuples = False
        self._elsewhere = 0.0
        self._last = self.layers[-1].forward
        self._configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
        attention.register()
        self.inner: list[Callable[..., Any]] = [layer.forward for layer in self.layers]
        """What computes each layer; may be replaced by a compiled or recomputed form of it."""
        for index, layer in enumerate(self.layers):
            layer.forward = partial(self._layer, index)

    @contextmanager
    def rows(self, lengths: Sequence[int] | None, stored: torch.Tensor | None = None) -> Iterator[None]:
        """Compute the model on rows laid end to end while the block runs, the backward pass included.

        Args:
            lengths: positions of each row of the padded batch, padded on the right; None: all of them.
            stored: what the frozen prefix gives for these rows [positions, width]; it is then not computed.
        """
        if stored is not None and self.output is not None and lengths is not None:
            with self._without_backbone(lengths, stored):
                yield
            return
        if self.apart:  # nothing is laid end to end
            yield
            return
        with ExitStack() as undo:
            for config in self._configs:
                undo.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal)
                config._attn_implementation_internal = attention.NAME
            undo.callback(setattr, self, "_passage", self._passage)
            glances = self.output is not None or self.depth < len(
                self.layers
            )  # else the last layer is stored, all of it
            self._passage = Passage(lengths, stored, self.reads if glances else None)
            idle = filler(lengths) if lengths is not None else 0
            undo.enter_context(attention.segments_of(lengths if not idle else [*(lengths or ()), idle]))
            if stored is not None and lengths is not None:
                undo.enter_context(self._without_entry(lengths, stored))
            yield

    @contextmanager
    def _without_entry(self, lengths: Sequence[int], stored: torch.Tensor) -> Iterator[None]:
        """Let what lies below the stack return a stand-in, since its result is not used."""
        stand_in = stored.new_zeros(1).expand(len(lengths), max(lengths), stored.shape[-1])
        for module in self._entry:
            module.forward = lambda *args, **kwargs: stand_in
        try:
            yield
        finally:
            for module in self._entry:
                del module.forward

    @contextmanager
    def _without_backbone(self, lengths: Sequence[int], stored: torch.Tensor) -> Iterator[None]:
        """Let the backbone return what is stored of its output, and a stand-in for the rest."""
        rows, longest = len(lengths), max(lengths)
        if self.output == MAPS:
            maps = stored.unflatten(0, (rows, *self._map)).permute(0, 3, 1, 2).contiguous()
            found = self._output_type(feature_maps=(maps,))
        elif self.output == "pooler_output":
            hidden = stored.new_zeros(1).expand(rows, longest, stored.shape[-1])
            found = self._output_type(last_hidden_state=hidden, pooler_output=stored)
        else:
            hidden = stored.new_zeros(rows, longest, stored.shape[-1])
            hidden[self._stored_places(lengths)] = stored
            found = self._output_type(last_hidden_state=hidden)
        assert self.backbone is not None  # it was found frozen
        self.backbone.forward = lambda *args, **kwargs: found
        try:
            yield
        finally:
            del self.backbone.forward

    def _layer(self, index: int, *args: Any, **kwargs: Any) -> Any:
        passage = self._passage
        if passage is None:
            return self.inner[index](*args, **kwargs)
        hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
        if index == 0:
            hidden = passage.enter(hidden)
        if passage.stored is not None and index < self.depth:
            out = (hidden,) if self._tuples else hidden
        else:
            rest = [passage.gather(value) for value in rest]
            kwargs = {name: v if name in _OF_ANY_ROW else passage.gather(v) for name, v in kwargs.items()}
            if index == len(self.layers) - 1 and passage.glance is not None:
                return self._glanced(passage, passage.glance, hidden, rest, kwargs)
            out = self.inner[index](hidden, *rest, **kwargs)
        if self._stop and index == self.depth - 1:
            raise _Reached(out[0] if isinstance(out, tuple) else out)
        if index < len(self.layers) - 1:
            return out
        return (passage.leave(out[0]), *out[1:]) if isinstance(out, tuple) else passage.leave(out)

    def _glanced(
        self, passage: Passage, glance: attention.Glance, hidden: torch.Tensor, rest: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Return the last layer's output for the positions that are read; keys and values come from all of them."""
        with glance.keys():
            self._last(hidden, *rest, **kwargs)
        few = [passage.read(value) for value in (hidden, *rest)]
        with glance.answers():
            out = self._last(
                *few, **{name: v if name in _OF_ANY_ROW else passage.read(v) for name, v in kwargs.items()}
            )
        if isinstance(out, tuple):
            return passage.leave_read(out[0], self._elsewhere), *out[1:]
        return passage.leave_read(out, self._elsewhere)

    def recompute(self, mode: str) -> None:
        """Save memory: compute the activations of layers that train again in the backward pass.

        Args:
            mode: "none"; "selective" keeps the results of matrix products; "full" keeps each layer's input only.
        """
        from torch.utils import checkpoint

        if mode == "none":
            return
        options: dict[str, Any] = {"use_reentrant": False}
        if mode == "selective":
            kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]
            options["context_fn"] = partial(checkpoint.create_selective_checkpoint_contexts, kept)
        self.inner = [partial(checkpoint.checkpoint, inner, **options) for inner in self.inner]

    def compile(self, folder: Path, graphs: bool = False) -> None:
        """Compile each layer; layers of one shape share what was compiled.

        Args:
            folder: where it is kept for a run that goes on, unless the user's environment names another.
            graphs: record CUDA graphs, so that starting kernels takes no time; one for each number of positions.
        """
        import burnish.ops.attention_operator  # noqa: F401  (defines what compiled layers call)

        if Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torchinductor_")).name.startswith("torchinductor_"):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.resolve())  # torch itself names torchinductor_USER
        mode, self.graphs = "reduce-overhead" if graphs else None, graphs
        self.inner = [torch.compile(inner, dynamic=True, mode=mode) for inner in self.inner]

    # -- the frozen prefix -------------------------------------------------------------------------------------------

    def prefix_of(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Return what the frozen prefix gives for the rows of a batch, laid end to end: [positions, width].

        Where a single vector of each row is stored, [rows, width].
        """
        if self.output is not None:
            return self._backbone_of(forward, batch)
        self._stop = True
        try:
            with torch.no_grad(), self.rows(batch.lengths):
                forward(batch)
        except _Reached as reached:
            return reached.hidden[0, : sum(batch.lengths)] if batch.lengths else reached.hidden[0]
        finally:
            self._stop = False
        raise NotImplementedError("the layers of the frozen prefix were not reached")

    def stored_lengths(self, lengths: Sequence[int]) -> list[int]:
        """Return how many vectors are stored of rows of these lengths."""
        if self.output == MAPS:
            return [math.prod(self._map)] * len(lengths)
        return [1] * len(lengths) if self.output == "pooler_output" or (self.output and self.reads) else list(lengths)

    def _stored_places(self, lengths: Sequence[int]) -> torch.Tensor:
        """Return which positions of a padded batch are stored of the backbone's output: bool [rows, positions]."""
        places, numbers = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
        if self.reads is None:
            return places < numbers
        return places == (numbers - 1 if self.reads == "last" else 0)

    def _backbone_of(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Return what is stored of the backbone's output for the rows of a batch."""

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._output_type = type(output)
            if self.output != MAPS:
                raise _Reached(output[self.output])
            [map_of_all] = output.feature_maps
            self._map = tuple(map_of_all.shape[2:])
            raise _Reached(map_of_all.permute(0, 2, 3, 1).flatten(0, 2))

        assert self.backbone is not None and batch.lengths is not None  # it was found frozen; rows have known lengths
        handle = self.backbone.register_forward_hook(leave)
        try:
            with torch.no_grad(), self.rows(batch.lengths):
                forward(batch)
        except _Reached as reached:
            if self.output in ("pooler_output", MAPS):
                return reached.hidden
            return reached.hidden[self._stored_places(batch.lengths)]
        finally:
            handle.remove()
        raise NotImplementedError("the frozen backbone was not reached")

    def find_prefix(self, forward: Forward, batch: Batch) -> str | None:
        """Set `depth` to what is frozen and can be replayed; return why it cannot be although layers are frozen.

        The model must be in the mode in which it trains.
        """
        self.depth, self.output = 0, None
        if any(value.requires_grad for value in self.layers[0].parameters()):
            return None
        if self.backbone is not None and not any(value.requires_grad for value in self.backbone.parameters()):
            for self.output in ("pooler_output", "last_hidden_state"):
                try:
                    if self._replays(forward, batch) is None:
                        self.depth = len(self.layers)
                        return None
                except (*_MISFITS, AssertionError):
                    continue
        self.output = None
        try:
            with self.rows(batch.lengths), self._seen() as seen:
                forward(batch)
            depth = sum(1 for output in seen.layers if not output.requires_grad)
            if not depth:
                return "something below the frozen layers trains"
            self.depth, self._entry = depth, self._find_entry(seen)
            refusal = self._replays(forward, batch)
            if refusal:
                return self._without_prefix(refusal)
        except _MISFITS as error:
            return self._without_prefix(f"{type(self._model).__name__} cannot be replayed ({error})")
        return None

    def finds_part(self, forward: Forward, batch: Batch) -> bool:
        """Return whether what a wholly frozen part of the model gives can be replayed though rows are padded; be ready for it.

        That is the map of a backbone inside a larger model, or the hidden states of an encoder or of all but the head.
        """
        before = self.backbone
        encoder = self._model.get_encoder() if self._model.config.is_encoder_decoder else None
        parts = ((backbone_of(self._model), MAPS), (encoder, _HIDDEN), (before, _HIDDEN))
        for self.backbone, self.output in parts:
            if self.backbone is None or any(value.requires_grad for value in self.backbone.parameters()):
                continue
            self.apart = True
            try:
                if self._replays(forward, batch) is None:
                    self.depth = len(self.layers)
                    return True
            except (*_MISFITS, AssertionError):
                pass
        self.backbone, self.output, self.apart = before, None, False
        return False

    def _replays(self, forward: Forward, batch: Batch) -> str | None:
        """Return why a replay of the prefix found is not bit-equal to computing it; None: it is."""
        stored = self.prefix_of(forward, _seeded(batch, 1))
        self.width, self.kind = stored.shape[-1], stored.dtype
        torch.manual_seed(0)
        with self.rows(batch.lengths):
            first = forward(batch)
        torch.manual_seed(0)
        with self.rows(batch.lengths, stored):
            again = forward(batch)
        if torch.equal(first, again):
            return None
        if not torch.equal(stored, self.prefix_of(forward, _seeded(batch, 2))):
            return "the frozen layers draw random numbers"
        return "layers above use more of the frozen ones than their output"

    def _without_prefix(self, reason: str) -> str:
        self.depth, self._entry = 0, []
        return reason

    def _find_entry(self, seen: _Seen) -> list[nn.Module]:
        """Return the frozen modules whose work is useless once the prefix is stored: what feeds the stack."""
        above = {name for name, module in self._model.named_modules() if self.layers[0] in module.modules()}
        found: dict[str, nn.Module] = {}
        for name, module, output in seen.modules:
            inside = name.startswith(f"{self.name}.")
            if not inside and name not in above and output is seen.entered:
                found = {name: module}  # the last and outermost one
        try:
            embeddings = self._model.get_input_embeddings()
        except NotImplementedError:  # transformers' way of saying that there are none
            embeddings = None
        return list({id(module): module for module in [*found.values(), embeddings] if module is not None}.values())

    # -- probing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _seen(self) -> Iterator[_Seen]:
        """Note what modules return while the block runs."""
        seen, handles = _Seen(), []

        def note_layer(module: nn.Module, args: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            seen.layers.append(output[0] if self._tuples else output)

        def note_entry(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.entered = args[0] if args else kwargs["hidden_states"]

        def note(name: str) -> Callable[..., None]:
            return lambda module, args, output: seen.modules.append((name, module, output))

        handles.append(self.layers[0].register_forward_pre_hook(note_entry, with_kwargs=True))
        handles += [layer.register_forward_hook(note_layer) for layer in self.layers]
        handles += [module.register_forward_hook(note(name)) for name, module in self._model.named_modules() if name]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def refusal(self, forward: Forward, together: Batch, alone: Sequence[Batch]) -> str | None:
        """Return why rows cannot be laid end to end; None: they can, each with the result it has alone.

        Args:
            forward: computes the model, in evaluation mode and float32.
            together: some rows of different lengths.
            alone: each of them as a batch of its own.
        """
        if together.lengths is None:
            return "the rows' lengths are not known"
        try:
            with torch.no_grad(), self.rows(together.lengths), self._seen() as seen:
                forward(together)
            singles = []
            for batch in alone:
                with torch.no_grad(), self._seen() as single:
                    forward(batch)
                singles += list(single.layers[-1])
            for row, length in enumerate(together.lengths):
                found, wanted = seen.layers[-1][row, :length], singles[row][:length]
                if not float((found - wanted).norm() / wanted.norm()) <= TOLERANCE:
                    return "end to end a row does not come out as it does alone"
        except NotImplementedError as error:
            return str(error)
        except _MISFITS:
            return "its layers take masks of their own making"
        return None

    def find_read(self, forward: Forward, together: Batch) -> str | None:
        """Set `reads` to the one position of each row that is read above the layers, if it is the first or the last.

        The last layer then computes nothing for the others. They are tried as NaN, which every use of them would show.

        Args:
            forward: computes the model, in evaluation mode and float32, on rows that can be laid end to end.
        """
        self.reads = None
        if together.lengths is None or max(together.lengths) == 1:
            return None
        with torch.no_grad(), self.rows(together.lengths):
            wanted = forward(together)
        self._elsewhere = math.nan
        for self.reads in ("first", "last"):
            try:
                with torch.no_grad(), self.rows(together.lengths):
                    found = forward(together)
            except (*_MISFITS, NotImplementedError):
                continue
            if bool((found - wanted).abs() <= TOLERANCE * wanted.abs()):
                break
        else:
            self.reads = None
        self._elsewhere = 0.0
        return self.reads


@dataclass
class _Seen:
    """What a forward pass went through."""

    layers: list[torch.Tensor] = field(default_factory=list)
    modules: list[tuple[str, nn.Module, Any]] = field(default_factory=list)
    entered: torch.Tensor | None = None


def _seeded(batch: Batch, seed: int) -> Batch:
    torch.manual_seed(seed)
    return batch
