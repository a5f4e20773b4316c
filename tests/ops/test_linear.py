"""Packed linear layers: the same bits as torch's own, and gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.ops.linear import packed

WIDE, NARROW, ROOM = 192, 48, 1 << 20


def made(kind: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(NARROW, WIDE), nn.GELU(), nn.Linear(WIDE, NARROW, bias=False))
        .to(kind)
        .requires_grad_(False)
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (3, 64), (1, 1000)])
def test_packed_layers_give_the_same_bits(kind: torch.dtype, shape: tuple[int, int]) -> None:
    model, values = made(kind), torch.randn(*shape, NARROW, dtype=kind)
    with torch.no_grad():
        wanted = model(values)
        with packed(model, 500, ROOM):
            assert torch.equal(model(values), wanted)
            model[0].weight.mul_(2)  # what was packed is a copy, so the bits show which one computes
            if kind == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
                assert torch.equal(model(values), wanted)
        assert not torch.equal(model(values), wanted)


def test_only_plain_frozen_layers_that_fit_are_packed_and_all_are_given_back() -> None:
    class Doubled(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(values)

    def square() -> nn.Linear:
        return nn.Linear(NARROW, NARROW)

    model = nn.Sequential(Doubled(NARROW, NARROW), square(), square(), square()).bfloat16().requires_grad_(False)
    model[1].weight.requires_grad_(True)
    with packed(model, 8, NARROW * NARROW * 2):  # room for one
        found = ["forward" in vars(module) for module in model]
    assert found == [False, False, torch.ops.mkldnn._is_mkldnn_bf16_supported(), False]
    assert not any("forward" in vars(module) for module in model.modules())
