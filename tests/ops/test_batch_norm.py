"""Batch norm that holds its statistics: torch's own in evaluation mode, with a gradient that is right for any layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.models.vision import settle
from burnish.ops.batch_norm import GroupBatchNorm, HeldBatchNorm, hold_batch_norm


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
    assert hold_batch_norm(model) == [held] and isinstance(held, HeldBatchNorm)
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


@pytest.mark.parametrize("rows", [1, 3])
def test_of_a_group_of_rows_it_is_torchs_own_in_training(rows: int) -> None:
    """Two groups are two batches of torch's, but for the running statistics, which learn the mean of both once."""
    plain, grouped = norm(), norm()
    model = nn.Sequential(grouped)
    hold_batch_norm(model, rows)
    assert isinstance(grouped, GroupBatchNorm)
    values = torch.randn(2 * rows, 8, 4, 4)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    gradient = torch.randn(2 * rows, 16, 8).transpose(1, 2).reshape(2 * rows, 8, 4, 4)
    before = plain.running_mean.clone()
    means = []
    for group, given in zip(one.split(rows), gradient.split(rows), strict=True):
        plain.running_mean.copy_(before)
        wanted = plain(group)
        means.append(plain.running_mean.clone())
        wanted.backward(given.clone(memory_format=torch.contiguous_format))
    found = model(other)
    found.backward(gradient)
    assert torch.allclose(found[rows:], wanted, atol=1e-6)
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert torch.allclose(plain.weight.grad, grouped.weight.grad, atol=1e-5)
    assert torch.equal(grouped.running_mean, before)
    grouped.learn()
    assert torch.allclose(grouped.running_mean, (means[0] + means[1]) / 2, atol=1e-6)
    assert grouped.num_batches_tracked == 1


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
