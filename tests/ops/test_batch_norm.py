"""Batch norm that holds its statistics: torch's own in evaluation mode, with a gradient that is right for any layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.models.vision import settle
from burnish.ops.batch_norm import HeldBatchNorm, hold_batch_norm


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(8)
    with torch.no_grad():
        for value in (made.weight, made.bias, made.running_mean):
            value.normal_()
        made.running_var.uniform_(0.5, 2)
    return made


@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_torchs_own_in_evaluation_mode(rows: int) -> None:
    """Also where the gradient comes transposed, as from attention; torch's own is wrong there for a single row."""
    plain, held = norm().eval(), norm()
    model = nn.Sequential(held)
    assert hold_batch_norm(model) == 1 and isinstance(held, HeldBatchNorm)
    model.train()
    before = held.running_mean.clone()
    values = torch.randn(rows, 8, 4, 4)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    gradient = torch.randn(rows, 16, 8).transpose(1, 2).reshape(rows, 8, 4, 4)
    first, second = plain(one), model(other)
    assert torch.allclose(first, second, atol=1e-6)
    first.backward(gradient.contiguous())
    second.backward(gradient)
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert torch.allclose(plain.weight.grad, held.weight.grad, atol=1e-5)
    assert torch.equal(held.running_mean, before)
    assert model.state_dict().keys() == nn.Sequential(plain).state_dict().keys()


def test_norms_of_a_new_model_take_the_statistics_of_its_images() -> None:
    """Layer by layer, in one pass: what leaves each has mean 0 and spread 1, however small the weights before it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
            )

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.layers(pixel_values)

    torch.manual_seed(0)
    model, images = Model(), torch.randn(4, 3, 12, 12) * 5 + 2
    apart = model.layers[1]
    kept = apart.running_mean.clone()
    settle(model, images, apart=apart)
    assert torch.equal(apart.running_mean, kept) and model.training
    settle(model, images)
    out = model.eval()(images)
    assert out.mean((0, 2, 3)).abs().max() < 1e-4 and (out.std((0, 2, 3)) - 1).abs().max() < 1e-2
