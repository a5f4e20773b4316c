"""When each token of an answer is said: where in the sound a decoder looks as it writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Frames over which what a head looks at is smoothed, by their median.
_SMOOTH = 7


def begins(model: Any, heard: Mapping[str, Any], before: Sequence[int], ids: Sequence[int], frames: int) -> list[int]:
    """Return the frame at which each token of an answer begins, and at last the one at which all has been said.

    Args:
        heard: what the model takes beside tokens: `encoder_outputs`, of one row.
        before: the tokens that stand before every answer.
        frames: how many of the encoder's are of the sound; later ones fill it up.
    """
    scores = _looks(model, heard, [*before, *ids])[:, :, :frames]
    return aligned(scores.softmax(-1).numpy(), len(before) - 1)


def aligned(looks: np.ndarray, skipped: int) -> list[int]:
    """Return the frame at which each token is entered, in their order.

    Args:
        looks: share of each frame in what heads look at as they write each token [heads, tokens, frames].
        skipped: tokens at the beginning that are not said.

    Source: openai/whisper (Radford et al. 2022), `timing.py`: each frame normalised over the tokens, the median of
    neighbours, the mean over heads, dynamic time warping.
    """
    spread = looks.std(1, keepdims=True)
    looks = (looks - looks.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    looks = np.pad(looks, ((0, 0), (0, 0), (_SMOOTH // 2, _SMOOTH // 2)), "edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(looks, _SMOOTH, -1), -1).mean(0)
    return warped(-smooth[skipped:])


def _looks(model: Any, heard: Mapping[str, Any], ids: Sequence[int]) -> Any:
    """Return how much heads look at each frame after each token, before the softmax: float32 [heads, tokens, frames].

    The heads are those that the model's generation config names for it, or all of the upper half of the layers.
    """
    import torch

    layers = [module for name, module in model.named_modules() if name.endswith(".encoder_attn")]
    made: dict[Any, torch.Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda part, _, output: made.update({part: output[0]}))
        for layer in layers
        for part in (layer.q_proj, layer.k_proj)
    ]
    try:
        with torch.inference_mode():
            model(**heard, decoder_input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    width = layers[0].head_dim
    heads = layers[0].q_proj.out_features // width
    upper = [(layer, head) for layer in range(len(layers) // 2, len(layers)) for head in range(heads)]
    chosen = getattr(model.generation_config, "alignment_heads", None) or upper
    found = []
    for layer, head in chosen:
        place = slice(head * width, (head + 1) * width)
        asks, offers = (made[part][:, place].float() for part in (layers[layer].q_proj, layers[layer].k_proj))
        found.append(asks @ offers.mT / width**0.5)
    return torch.stack(found).cpu()


def warped(costs: np.ndarray) -> list[int]:
    """Return the column at which the cheapest path enters each row: from the first corner to the last, right, down, or both.

    Args:
        costs: of each cell [rows, columns].

    >>> warped(np.array([[0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0]]))
    [0, 1, 3]
    """
    sums = costs.cumsum(1)
    whole = [sums[0]]  # cost of the cheapest path to each cell of a row
    for cost, along in zip(costs[1:], sums[1:], strict=True):
        entered = np.minimum(whole[-1], np.append(np.inf, whole[-1][:-1]))
        whole.append(along + np.minimum.accumulate(entered - along + cost))
    found, column = [0] * len(costs), costs.shape[1] - 1
    for row in range(len(costs) - 1, 0, -1):
        entered = np.minimum(whole[row - 1], np.append(np.inf, whole[row - 1][:-1]))
        cheapest = (entered - sums[row] + costs[row])[: column + 1]
        column = len(cheapest) - 1 - int(cheapest[::-1].argmin())  # the latest of equal ones
        found[row] = column
        if column and whole[row - 1][column - 1] <= whole[row - 1][column]:
            column -= 1
    return found
