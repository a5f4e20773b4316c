"""Where a decoder looks: the heads' own weights, the cheapest path through them, and the frames at which tokens begin."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from burnish.generate.alignment import _looks, aligned, begins, warped
from tasks.test_speech_recognition import made


def opened(kind: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return a small model of a kind with random weights, and what it makes of a noise."""
    auto: Any = transformers.AutoModelForSpeechSeq2Seq
    model = auto.from_pretrained(made(kind, folder), attn_implementation="eager").eval()
    torch.manual_seed(1)
    sound = torch.randn(1, 80, 200) if kind == "whisper" else torch.randn(1, 16_000)
    with torch.no_grad():
        return model, {"encoder_outputs": model.get_encoder()(sound)}


@pytest.mark.parametrize("kind", ["whisper", "moonshine"])
@pytest.mark.parametrize("heads", [None, [[0, 1], [1, 0]]])
def test_heads_look_where_transformers_says(kind: str, heads: Any, tmp_path: Path) -> None:
    """The chosen heads, or those of the upper half of two layers; others differ."""
    model, heard = opened(kind, tmp_path)
    model.generation_config.alignment_heads = heads
    ids = [1, 5, 6, 7]
    found = _looks(model, heard, ids).softmax(-1)
    with torch.no_grad():
        output = model(**heard, decoder_input_ids=torch.tensor([ids]), output_attentions=True)
    wanted = [output.cross_attentions[layer][0, head] for layer, head in heads or [(1, 0), (1, 1)]]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-6)
    assert (found[0] - output.cross_attentions[0][0, 0]).abs().max() > 1e-5
    starts = begins(model, heard, ids[:2], ids[2:], 30)
    assert len(starts) == 3 and starts[0] == 0 and starts[-1] < 30 and all(a <= b for a, b in pairwise(starts))


def test_the_path_is_the_cheapest() -> None:
    """Its cost is that of the best of all paths, found cell by cell."""
    random = np.random.default_rng(0)
    for rows, columns in ((1, 5), (4, 9), (7, 3), (6, 30)):
        costs = random.standard_normal((rows, columns))
        best = np.full((rows + 1, columns + 1), np.inf)
        best[0, 0] = 0
        for row in range(rows):
            for column in range(columns):
                ways = best[row, column], best[row, column + 1], best[row + 1, column]
                best[row + 1, column + 1] = costs[row, column] + min(ways)
        starts = warped(costs)
        along = [*starts, columns - 1]  # a row goes on until the next is entered, there or one before
        paid = sum(
            min(costs[row, along[row] : end + 1].sum() for end in {along[row + 1], max(along[row], along[row + 1] - 1)})
            for row in range(rows - 1)
        )
        assert paid + costs[-1, along[-2] :].sum() == pytest.approx(best[-1, -1])


def test_tokens_begin_where_heads_begin_to_look_there() -> None:
    """Six tokens of known length after two that are not said; one head of three looks nowhere. Read a token late, it fails."""
    starts = [0, 20, 32, 60, 71, 90]
    random, looks = np.random.default_rng(0), np.full((3, 8, 120), 0.002)
    for token, (start, end) in enumerate(pairwise([*starts, 120])):
        looks[:2, token + 2, start:end] += 0.02
    looks += random.uniform(0, 0.01, looks.shape)
    looks[2, :, :] = 1 / 120
    assert np.abs(np.array(aligned(looks, 2)) - starts).max() <= 1
    assert np.abs(np.array(aligned(looks, 1)[:-1]) - starts).max() > 10
