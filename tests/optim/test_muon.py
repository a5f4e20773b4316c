"""Our Muon against torch's, and one by one against all at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from burnish.optim import muon
from burnish.optim.muon import Muon, orthogonal

SHAPES = [(24, 72), (24, 24), (24, 96), (96, 24), (24, 24), (5, 1), (1, 7)]
#: Relative global L2 of what the steps changed: eight bits of bfloat16 in five rounds of products.
TOLERANCE = 0.03


def trained(optimizer: type[torch.optim.Optimizer], num_steps: int = 6, **options: object) -> list[Tensor]:
    """Return how far each matrix moved in some steps whose gradients are given."""
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    before = [parameter.detach().clone() for parameter in parameters]
    made = optimizer(
        [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 3e-2}], lr=1e-2, weight_decay=0.1, **options
    )
    for _ in range(num_steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        made.step()
    return [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    one, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, expected))
    return float((one - other).norm() / other.norm())


def test_as_torch_does_it() -> None:
    expected = trained(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    assert distance(trained(Muon), expected) < TOLERANCE
    assert distance(trained(Muon), trained(torch.optim.Muon, adjust_lr_fn="original")) > 5 * TOLERANCE


@pytest.mark.parametrize("precise", [True, False], ids=["float32", "bfloat16"])
def test_all_at_once_as_one_by_one(monkeypatch: pytest.MonkeyPatch, precise: bool) -> None:
    """What a GPU does, here on a CPU: stacks of a shape and its transpose."""
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: not precise)
    expected = trained(Muon)
    sizes = []
    together = lambda parameters: [[p for p in parameters if set(p.shape) == shape] for shape in _shapes(parameters)]  # noqa: E731
    monkeypatch.setattr(muon, "_bundles", lambda parameters: sizes.append(together(parameters)) or sizes[-1])
    assert distance(trained(Muon), expected) < (1e-5 if precise else TOLERANCE)
    assert max(len(bundle) for bundles in sizes for bundle in bundles) > 1


def _shapes(parameters: list[Tensor]) -> list[set[int]]:
    shapes: list[set[int]] = []
    for parameter in parameters:
        if set(parameter.shape) not in shapes:
            shapes.append(set(parameter.shape))
    return shapes


def test_bundles_by_device() -> None:
    """A CPU takes each matrix alone; elsewhere those of a shape go together, whichever way they lie."""
    assert [len(bundle) for bundle in muon._bundles([torch.empty(2, 3), torch.empty(2, 3)])] == [1, 1]
    shapes = [(2, 3), (3, 2), (3, 3), (2, 3)]
    assert [len(bundle) for bundle in muon._bundles([torch.empty(s, device="meta") for s in shapes])] == [3, 1]


def test_singular_values_come_near_one() -> None:
    """Those of a random matrix, wide or a stack of them; its singular vectors stay."""
    matrix = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    result = orthogonal(matrix).float()
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ result @ right.mT
    assert float((turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).norm() / turned.norm()) < TOLERANCE


def test_a_parameter_without_a_gradient_stays_and_vectors_are_refused() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    optimizer = Muon(parameters)
    parameters[0].grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert torch.equal(parameters[1], torch.ones(2, 3)) and not torch.equal(parameters[0], torch.ones(2, 3))
    assert list(optimizer.state) == [parameters[0]]
    with pytest.raises(ValueError, match=r"matrices; one parameter has the shape \[3\]"):
        Muon([torch.nn.Parameter(torch.ones(3))])
