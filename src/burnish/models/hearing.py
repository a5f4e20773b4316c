"""Models that hear: how many positions a sound has in them, and fronts whose norms span a whole row."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from burnish.errors import UserError

#: Samples between the entries of a mask that Moonshine's encoder looks at, as transformers has it.
_MOONSHINE_STRIDE = 64 * 3 * 2
#: What models of sound have that says how many positions come of so many samples or frames.
_COUNTERS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")


def positions_of(model: Any, frames: int) -> int:
    """Return how many positions a model makes of so many samples or frames of features; 0 where they are too few.

    Raises:
        UserError: it does not say.
    """
    counter = next((getattr(model, name) for name in _COUNTERS if hasattr(model, name)), None)
    if counter is None:
        raise UserError(
            f"model: {type(model).__name__} does not say how many positions a sound has. Take another model."
        )
    return max(0, int(counter(torch.tensor(frames))))


def prepare(model: Any) -> None:
    """Let a model take features in the precision it computes in, and norms over time in its front see each row alone.

    Else what a model hears in a sound would depend on the length of its neighbours, which fill it up. The models of wav2vec
    2.0's and HuBERT's base size and Moonshine have such norms; no weight changes.
    """
    found, before = [], None
    for module in list(model.modules()):
        for name, child in module.named_children():
            conv = next((one for one in module.children() if isinstance(one, nn.Conv1d)), before)
            if isinstance(child, nn.GroupNorm) and not isinstance(child, _RowNorm) and conv is not None:
                norm = _RowNorm(child, conv)
                setattr(module, name, norm)
                found.append(norm)
            before = child if isinstance(child, nn.Conv1d) else before

    def take(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, precision = kwargs.get("attention_mask"), next(module.parameters()).dtype
        for norm in found:
            norm.counts = None if mask is None else mask.sum(1).tolist()
        if mask is not None and model.config.model_type == "moonshine":
            kwargs = kwargs | {"attention_mask": _thinned(module, mask)}
        heard = {name: kwargs[name].to(precision) for name in ("input_values", "input_features") if name in kwargs}
        return tuple(value.to(precision) for value in args), kwargs | heard

    hearing = model.get_encoder() if model.config.is_encoder_decoder else model
    hearing.register_forward_pre_hook(take, with_kwargs=True)


def _thinned(encoder: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return a mask of samples of which Moonshine's encoder makes one of just the positions that a row has.

    It takes each 384th entry, of which there are more than its convolutions give positions; so a row would hear its
    neighbours' length.
    """
    counts = torch.tensor([positions_of(encoder, int(count)) for count in mask.sum(1)], device=mask.device)
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places <= (counts[:, None] - 1) * _MOONSHINE_STRIDE).to(mask.dtype)


class _RowNorm(nn.GroupNorm):
    """A group norm over channels and time, of each row's own time.

    Args:
        norm: whose weights it has.
        conv: the convolution before it, the first of the model.
    """

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv1d):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.counts: list[int] | None = None
        """Samples of each row of the batch that is computed; None: all rows have all."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return hidden states [rows, channels, time], zeros where a row is filled up."""
        if self.counts is None or len(self.counts) != len(input):
            return super().forward(input)
        rows, longest = [], input.shape[2]
        for row, count in zip(input, self.counts, strict=True):
            real = max(1, (count - self.kernel) // self.stride + 1)
            rows.append(functional.pad(super().forward(row[None, :, :real]), (0, longest - real)))
        return torch.cat(rows)
