"""Attention within rows laid end to end equals softmax(scale * QK^T)V in float64, on every path there is."""

from __future__ import annotations

import pytest
import torch

import burnish.ops.attention_operator  # noqa: F401  (defines torch.ops.burnish.attention)
from burnish.ops import attention
from burnish.ops.attention import BACKWARD, FORWARD, Rule, Segments

TOLERANCE = 2e-6
"""Relative L2 of output and gradients, float32 against float64."""
BF16 = 2e-2

ROWS = [(5, 5, 9, 3), (31, 31, 31), (300,), (7, 400, 400), tuple(range(3, 40))]
RULES = [
    Rule(True, 0.2),
    Rule(False, 0.2),
    Rule(True, 0.2, window=4),
    Rule(False, 0.2, window=65),
    Rule(True, 0.2, window=50, softcap=5.0),
    Rule(False, 0.2, softcap=5.0),
]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple, rule: Rule) -> torch.Tensor:
    outputs, start = [], 0
    for length in lengths:
        q, k, v = (tensor[0, :, start : start + length].double() for tensor in (query, key, value))
        start += length
        scores = q @ k.transpose(-1, -2) * rule.scale
        if rule.softcap:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
        seen = distance.abs() < (rule.window or length + 1)
        if rule.causal:
            seen &= distance >= 0
        outputs.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v)
    return torch.cat(outputs, 1)[None]


def inputs(lengths: tuple, kind: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
    torch.manual_seed(0)
    shape = (1, sum(lengths), 4, 16)
    return [torch.randn(shape).to(device, kind).requires_grad_() for _ in range(3)]


def distances(found: tuple, wanted: tuple) -> list[float]:
    return [float(((f - w.double()).norm() / w.double().norm()).detach()) for f, w in zip(found, wanted, strict=True)]


def compared(lengths: tuple, rule: Rule, kind: torch.dtype, compute, device: str = "cpu") -> list[float]:
    """Return how far output and gradients of `compute` lie from the reference's."""
    tensors = inputs(lengths, kind, device)
    views = [tensor.transpose(1, 2) for tensor in tensors]
    out, wanted = compute(*views), reference(*views, lengths, rule)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
    found = torch.autograd.grad(out, tensors, upstream.to(kind))
    exact = torch.autograd.grad(wanted, tensors, upstream.to(kind).double())
    return distances((out, *found), (wanted, *exact))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("lengths", ROWS, ids=len)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, BF16)], ids=str)
def test_attention_equals_its_formula(lengths: tuple, rule: Rule, kind: torch.dtype, tolerance: float) -> None:
    segments = Segments(lengths)
    found = compared(lengths, rule, kind, lambda q, k, v: attention.attention(q, k, v, segments, rule))
    assert max(found) <= tolerance


@pytest.mark.parametrize("rule", RULES[:4], ids=str)
def test_the_operator_for_compiled_code_is_the_same(rule: Rule) -> None:
    """Zero lengths fill up a fixed number of rows."""
    lengths = torch.tensor([5, 5, 9, 3, 0, 0, 0, 0])

    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.ops.burnish.attention(q, k, v, lengths, rule.causal, rule.scale, rule.window or 0)[0]

    assert max(compared(ROWS[0], rule, torch.float32, compute)) <= TOLERANCE
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    assert max(compared(ROWS[0], rule, torch.float32, compiled)) <= TOLERANCE


def test_rows_of_like_length_share_a_call_where_that_costs_less() -> None:
    lengths = tuple(range(3, 40))
    layout = Segments(lengths).filled(BACKWARD)
    assert 1 < len(layout.groups) < 12
    spread = sum(group.count * group.length for group in layout.groups)
    assert sum(lengths) < spread < 1.4 * sum(lengths)
    assert len(Segments((500, 1000)).filled(BACKWARD).groups) == 2  # filling up would cost more than a call
    assert Segments((7, 7)).filled(BACKWARD).index is None


def test_rows_are_filled_up_to_what_the_kernel_takes_at_once() -> None:
    (group,) = Segments((31, 31)).filled(FORWARD).groups
    assert (group.length, group.lengths) == (32, (31, 31))
    assert Segments((17, 17)).filled(FORWARD).index is None  # one key left over costs less than 15 empty ones
    assert Segments((32, 32)).filled(FORWARD).index is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("lengths", ROWS, ids=len)
def test_attention_on_a_gpu_equals_its_formula(lengths: tuple, rule: Rule, kind: torch.dtype) -> None:
    segments = Segments(lengths)
    found = compared(lengths, rule, kind, lambda q, k, v: attention.attention(q, k, v, segments, rule), "cuda")
    assert max(found) <= (BF16 if kind == torch.bfloat16 else TOLERANCE)
