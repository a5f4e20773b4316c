"""What the engine promises of every architecture of ours: one gradient, however a step is cut and its rows are laid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import first_step, session_of

WAYS = ((8, "auto"), (3, "auto"), (1, "auto"), (8, "off"), (3, "off"))


def gradient_of(preset: str, data: dict[str, str], micro_batch: int, packing: str) -> tuple[str, float, torch.Tensor]:
    """Return the arrangement, the loss and the whole gradient of the first step."""
    session = session_of(
        "text-generation",
        Path("unused"),
        model={"preset": preset, "vocab_size": 300},
        data=data,
        train={"batch": 8, "sequence": 48, "precision": "fp32", "micro_batch": micro_batch, "packing": packing},
    )
    session.join()
    loss, gradient = first_step(session)
    return session.plan.arrangement, float(loss), gradient


@pytest.mark.parametrize("preset", ["lamda-nano", "qwen3-moe-nano", "gpt3-nano-banded"])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(preset: str, words_file: Path) -> None:
    """Rows of many lengths, in micro-batches of all, three and one, end to end and padded."""
    data = {"train": str(words_file), "prompt": "text", "text": "target"}
    wanted = None
    for micro_batch, packing in WAYS:
        arrangement, loss, gradient = gradient_of(preset, data, micro_batch, packing)
        assert arrangement == ("packed" if packing == "auto" else "padded")
        wanted = wanted or (loss, gradient)
        assert loss == pytest.approx(wanted[0], rel=1e-5)
        assert float((gradient - wanted[1]).norm() / wanted[1].norm()) <= 1e-5, (micro_batch, packing)
