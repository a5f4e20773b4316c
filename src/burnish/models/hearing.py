"""Models that hear: how many positions a sound has in them, and fronts whose norms span a whole row."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from burnish.errors import UserError

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


def split_norms(model: Any) -> None:
    """Let norms over time in a model's front see each row alone, without what fills it up to the longest.

    Else what a model hears in a sound would depend on the length of its neighbours. The models of wav2vec 2.0's and
    HuBERT's base size and Moonshine have such norms; no weight changes.
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
    if not found:
        return

    def note(module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        for norm in found:
            norm.counts = None if mask is None else mask.sum(1).tolist()

    encoder = model.get_encoder() if model.config.is_encoder_decoder else None
    for module in [model, *([encoder] if encoder is not None else [])]:
        module.register_forward_pre_hook(note, with_kwargs=True)


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
