"""Distillation's losses against torch's divergence, in full and cut to the likeliest classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from burnish.ops.distillation import soft_losses, top_losses, top_of

DRAW = torch.Generator().manual_seed(0)
LOGITS, TEACHER = (3 * torch.randn(20, 50, generator=DRAW) for _ in range(2))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_torchs_divergence(temperature: float) -> None:
    wanted = kl_div(
        (LOGITS / temperature).log_softmax(-1),
        (TEACHER / temperature).log_softmax(-1),
        reduction="none",
        log_target=True,
    )
    found = soft_losses(LOGITS, TEACHER, temperature)
    assert torch.allclose(found, temperature**2 * wanted.sum(-1), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_rest_counts_as_one_class(temperature: float) -> None:
    """By hand from probabilities; never more than the whole, and the whole where none is left out."""
    wanted, found = ((values / temperature).softmax(-1) for values in (TEACHER, LOGITS))
    best = wanted.topk(7).indices
    p, q = (
        torch.cat([values.gather(1, best), 1 - values.gather(1, best).sum(1, keepdim=True)], 1)
        for values in (wanted, found)
    )
    by_hand = temperature**2 * (p * (p / q).log()).sum(1)
    cut = top_losses(LOGITS, top_of(TEACHER, 7, temperature), temperature)
    assert torch.allclose(cut, by_hand, rtol=1e-4)
    whole = soft_losses(LOGITS, TEACHER, temperature)
    assert (cut <= whole + 1e-5).all() and not torch.allclose(cut, whole, rtol=1e-3)
    for count in (50, 80):
        assert torch.allclose(
            top_losses(LOGITS, top_of(TEACHER, count, temperature), temperature), whole, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("count", [7, 50])
def test_gradients_are_finite_and_vanish_where_both_agree(count: int) -> None:
    logits = TEACHER.clone().requires_grad_()
    top_losses(logits, top_of(TEACHER, count, 2.0), 2.0).sum().backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-5
    far = LOGITS.clone().requires_grad_()
    top_losses(far, top_of(100 * TEACHER, count, 1.0), 1.0).sum().backward()
    assert far.grad is not None and torch.isfinite(far.grad).all()
