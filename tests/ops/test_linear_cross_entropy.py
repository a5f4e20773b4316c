"""The fused output layer and loss against float64, in every way it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from burnish.ops.linear_cross_entropy import linear_cross_entropy, linear_token_losses, score_

ROWS, WIDTH, VOCABULARY = 48, 16, 257
#: Relative error of the loss and relative global L2 error of a gradient. In bfloat16 the logits and their gradient carry
#: eight bits; the loss averages that away, a gradient's entries do not.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5), torch.bfloat16: (2e-4, 1e-2)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.25},
    "softcap and scale": {"softcap": 3.0, "scale": 1.5},
}


def inputs(dtype: torch.dtype, seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden, weight, bias and targets; a third of the targets are ignored."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=draw).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).to(dtype)
    bias = torch.randn(VOCABULARY, generator=draw).to(dtype)
    targets = torch.randint(VOCABULARY, (rows,), generator=draw)
    targets[::3] = -100
    return hidden, weight, bias, targets


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None, scale=1.0
) -> Tensor:
    """Return each row's loss by the formula, in float64."""
    logits = hidden.double() @ weight.double().t()
    logits = (logits if bias is None else logits + bias.double()) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)


def with_gradients(loss: Callable[..., Tensor], *tensors: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss of fresh leaves and the gradient of 0.37 times it by each of them."""
    leaves = [None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    (0.37 * value).backward()
    return value.detach(), [None if leaf is None else leaf.grad for leaf in leaves]


def distance(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_against_float64(dtype: torch.dtype, with_bias: bool, options: dict[str, Any]) -> None:
    """Loss, gradients and losses by row, in one chunk and in seven."""
    hidden, weight, bias, targets = inputs(dtype)
    given = (hidden, weight, bias if with_bias else None)
    right, right_gradients = with_gradients(
        lambda h, w, b: reference(h, w, targets, b, **options).sum(),
        *(None if x is None else x.double() for x in given),
    )
    for_loss, for_gradient = TOLERANCE[dtype]
    for rows in (ROWS, 5):
        size = {"chunk_bytes": rows * VOCABULARY * dtype.itemsize}
        loss, gradients = with_gradients(
            lambda h, w, b, size=size: linear_cross_entropy(h, w, targets, bias=b, **options, **size), *given
        )
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert abs(float(loss / right) - 1) < for_loss
        for found, expected, tensor in zip(gradients, right_gradients, given, strict=True):
            if tensor is not None:
                assert found is not None and found.dtype == dtype
                assert distance(found, expected) < for_gradient
        losses = linear_token_losses(hidden, weight, targets, bias=given[2], **options, **size)
        assert losses.shape == targets.shape and not losses.requires_grad
        assert torch.all(losses[targets == -100] == 0)
        assert abs(float(losses.double().sum() / right) - 1) < for_loss


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rows_that_count_differently(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The gradient of a function of the rows' losses, in one chunk and in seven; weights that differ in sign and size."""
    hidden, weight, bias, targets = inputs(dtype)
    counts = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    given = (hidden, weight, bias)
    _, right = with_gradients(
        lambda h, w, b: (counts * reference(h, w, targets, b, **options)).sum(), *(x.double() for x in given)
    )
    for rows in (ROWS, 5):
        size = {"chunk_bytes": rows * VOCABULARY * dtype.itemsize}
        _, found = with_gradients(
            lambda h, w, b, size=size: (counts * linear_token_losses(h, w, targets, bias=b, **options, **size)).sum(),
            *given,
        )
        for ours, expected in zip(found, right, strict=True):
            assert ours is not None and ours.dtype == dtype and distance(ours, expected) < TOLERANCE[dtype][1]


def test_a_rounded_loss_fails() -> None:
    """torch's own operation returns the loss in bfloat16; the tolerance above catches it."""
    hidden, weight, _, targets = inputs(torch.bfloat16)
    right = float(reference(hidden, weight, targets).sum())
    rounded = float(linear_cross_entropy(hidden, weight, targets).bfloat16())
    assert abs(rounded / right - 1) > TOLERANCE[torch.bfloat16][0]


def test_ignored_rows_take_no_part() -> None:
    """Whatever stands in them, even a NaN: the same bits, and a gradient of zero for them."""
    hidden, weight, _, targets = inputs(torch.float32)
    other = hidden.clone()
    other[targets == -100] = float("nan")
    loss = lambda h, w: linear_cross_entropy(h, w, targets)  # noqa: E731
    first, (hidden_gradient, weight_gradient) = with_gradients(loss, hidden, weight)
    second, (other_hidden_gradient, other_weight_gradient) = with_gradients(loss, other, weight)
    assert torch.equal(first, second)
    assert hidden_gradient is not None and weight_gradient is not None
    assert torch.equal(hidden_gradient, other_hidden_gradient)
    assert torch.equal(weight_gradient, other_weight_gradient)
    assert torch.all(hidden_gradient[targets == -100] == 0)


def test_another_ignore_index() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    expected = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(
        linear_cross_entropy(hidden, weight, targets.where(targets != -100, 3), ignore_index=3), expected
    ) == (not torch.any(targets == 3))
    assert torch.equal(
        linear_cross_entropy(hidden, weight, targets.where(targets != -100, -1), ignore_index=-1), expected
    )


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradient_that_is_needed(frozen: str) -> None:
    """A frozen output layer costs no product for it."""
    hidden, weight, _, targets = inputs(torch.float32)
    (hidden if frozen == "weight" else weight).requires_grad_()
    with _Recorder() as recorder:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert (hidden.grad is None) == (frozen == "hidden") and (weight.grad is None) == (frozen == "weight")
    assert recorder.products == 2
    with _Recorder() as recorder:
        linear_cross_entropy(hidden.detach(), weight.detach(), targets)
    assert recorder.products == 1


def test_tied_weight_and_strided_input() -> None:
    """The weight is the input embedding too; rows come from a transposed tensor."""
    _, weight, _, targets = inputs(torch.float64)
    ids = torch.arange(ROWS) % VOCABULARY

    def loss(weight: Tensor, fused: bool) -> Tensor:
        hidden = (weight[ids] * 2).t().contiguous().t()
        assert not hidden.is_contiguous()
        return linear_cross_entropy(hidden, weight, targets) if fused else reference(hidden, weight, targets).sum()

    found, (gradient,) = with_gradients(lambda w: loss(w, True), weight)
    expected, (right,) = with_gradients(lambda w: loss(w, False), weight)
    assert abs(float(found / expected) - 1) < 1e-12 and distance(gradient, right) < 1e-12


@pytest.mark.parametrize("ignored", [True, False], ids=["all ignored", "no rows"])
def test_nothing_to_score(ignored: bool) -> None:
    hidden, weight, bias, targets = inputs(torch.float32, rows=4 if ignored else 0)
    targets = torch.full_like(targets, -100)
    loss, gradients = with_gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b), hidden, weight, bias)
    assert float(loss) == 0
    assert all(gradient is not None and torch.all(gradient == 0) for gradient in gradients)
    assert torch.equal(linear_token_losses(hidden, weight, targets), torch.zeros(len(targets)))


def test_master_weights_and_autocast() -> None:
    """Rows in bfloat16, weight in float32: computed in bfloat16, the weight's gradient in float32. Autocast does the same."""
    hidden, weight, bias, targets = inputs(torch.float32)
    low = hidden.bfloat16()
    loss, (_, gradient, _) = with_gradients(
        lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, chunk_bytes=9 * VOCABULARY * 2), low, weight, bias
    )
    assert gradient is not None and gradient.dtype == torch.float32
    assert not torch.equal(gradient, gradient.bfloat16().float()), "was rounded on the way"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            linear_cross_entropy(hidden, weight, targets, bias=bias, chunk_bytes=9 * VOCABULARY * 2), loss
        )


def test_without_gradients() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    expected = linear_cross_entropy(hidden, weight, targets)
    weight.requires_grad_()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = linear_cross_entropy(hidden, weight, targets)
        assert not loss.requires_grad and torch.equal(loss, expected)


def test_backward_runs_once() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("target", [VOCABULARY, -1])
def test_a_target_outside_is_refused(target: int) -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    targets[1] = target
    with pytest.raises(ValueError, match=f"{target}.*the output layer has {VOCABULARY} rows"):
        linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(hidden, weight, targets[1:])


class _Recorder(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in bytes, and how many matrix products are made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor is one chunk of logits; the plain way makes all of them, in float32."""
    monkeypatch.setattr("burnish.ops.linear_cross_entropy.CACHE_BYTES", 4 * VOCABULARY * 4)
    hidden, weight, _, targets = inputs(torch.bfloat16, rows=400)
    chunk = 50 * VOCABULARY * 2
    for tensor in (hidden, weight):
        tensor.requires_grad_()
    with _Recorder() as recorder:
        linear_cross_entropy(hidden, weight, targets, chunk_bytes=chunk).backward()
    assert recorder.largest <= chunk
    with _Recorder() as recorder:
        linear_token_losses(hidden, weight, targets, chunk_bytes=chunk)
    assert recorder.largest <= chunk
    with _Recorder() as recorder:
        F.cross_entropy((hidden @ weight.t()).float(), targets).backward()
    assert recorder.largest == len(hidden) * VOCABULARY * 4


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., Tensor], str]:
    """Return the Triton kernel and the device to run it on: the GPU, or the CPU in Triton's interpreter."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed")
    from burnish.ops import linear_cross_entropy_triton

    monkeypatch.setattr(linear_cross_entropy_triton, "_MOST_COLUMNS", 128)  # several blocks a row
    return linear_cross_entropy_triton.score_, "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_scores_as_the_plain_pass(kernel: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    own, device = kernel
    logits = (torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3).to(dtype).to(device)
    targets = torch.tensor([0, 5, VOCABULARY - 1, 128, -100, 127], device=device)
    arguments = (targets, options.get("softcap"), options.get("scale", 1.0), -100, True)
    found, expected = logits.clone(), logits.clone()
    losses, right = own(found, *arguments), score_(expected, *arguments)
    right[4], expected[4] = 0, 0  # the plain pass leaves ignored rows to its caller on a CPU
    assert torch.allclose(losses, right, rtol=1e-5, atol=1e-5)
    assert distance(found, expected) < (1e-5 if dtype == torch.float32 else 5e-3)
    targets[0] = VOCABULARY
    assert own(logits, *arguments)[0].isnan(), "a target outside must not go unnoticed"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_as_on_a_cpu(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = inputs(dtype)
    right, expected = with_gradients(
        lambda h, w, b: reference(h, w, targets, b).sum(), *(x.double() for x in (hidden, weight, bias))
    )
    on_gpu = [value.cuda() for value in (hidden, weight, bias)]
    targets = targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, gradients = with_gradients(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b), *on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for_loss, for_gradient = TOLERANCE[dtype]
    assert abs(float(loss) / float(right) - 1) < for_loss
    for found, one in zip(gradients, expected, strict=True):
        assert distance(None if found is None else found.cpu(), one) < for_gradient
