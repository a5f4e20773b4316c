"""bfloat16 weights over float32 masters: sums, rounding, what stays float32, and the loss of a longer run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import burnish
from burnish.api import Run
from burnish.engine.step import accumulate
from burnish.models.precision import Weights, round_to_bf16
from burnish.terminal import Terminal
from helpers import apart, session_of, trained, weights_of


def model_of(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32, bias=bias), nn.Tanh(), nn.Linear(32, 4, bias=bias))


def micro_batches(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(3, 16, generator=draw) for _ in range(count)]


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    """The sum of each one's own gradient, exactly; a sum in bfloat16 is off by far more."""
    rows = micro_batches(64)
    whole = Weights(model_of(), "bf16")
    for batch in rows:
        whole.model(batch.bfloat16()).float().square().sum().backward()
    found = {name: value.grad.clone() for name, value in whole.exact.items()}

    wanted = {name: torch.zeros_like(value) for name, value in whole.exact.items()}
    for batch in rows:
        alone = Weights(model_of(), "bf16")
        alone.model(batch.bfloat16()).float().square().sum().backward()
        for name, value in alone.exact.items():
            wanted[name] += value.grad
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    naive = model_of().bfloat16()
    for batch in rows:
        naive(batch.bfloat16()).float().square().sum().backward()
    assert apart({name: value.grad.float() for name, value in naive.named_parameters()}, wanted) > 1e-3


def test_small_updates_are_not_lost() -> None:
    """A hundred updates far below a bfloat16 weight's last digit add up in the weights behind it."""
    weights = Weights(model_of(), "bf16")
    before = weights_copy(weights)
    for _ in range(100):
        with torch.no_grad():
            for value in weights.trained():
                value += 1e-5
        weights.publish()
    for (name, value), shown in zip(weights.exact.items(), weights.model.parameters(), strict=True):
        assert torch.allclose(value, before[name] + 1e-3, rtol=0, atol=5e-6)
        assert torch.equal(shown, value.bfloat16())
    rounded = model_of().bfloat16()
    start = [value.detach().clone() for value in rounded.parameters()]
    with torch.no_grad():
        for _ in range(100):
            for value in rounded.parameters():
                value += 1e-5
    still = [float((value == first).float().mean()) for value, first in zip(rounded.parameters(), start, strict=True)]
    assert min(still) > 0.8  # what training in bfloat16 alone would do


def weights_copy(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in weights.exact.items()}


def test_publish_rounds_what_trains_and_everything_when_asked() -> None:
    model = model_of()
    next(model.parameters()).requires_grad_(False)
    frozen, trains = "0.weight", "2.weight"
    weights = Weights(model, "bf16")
    with torch.no_grad():
        for value in weights.exact.values():
            value += 1.0
    shown = dict(model.named_parameters())
    weights.publish()
    assert torch.equal(shown[trains], weights.exact[trains].bfloat16())
    assert not torch.equal(shown[frozen], weights.exact[frozen].bfloat16())
    weights.publish(everything=True)
    assert torch.equal(shown[frozen], weights.exact[frozen].bfloat16())
    model(torch.ones(1, 16).bfloat16()).sum().backward()
    assert weights.exact[frozen].grad is None and weights.exact[trains].grad is not None
    weights.forget_gradients()
    assert all(value.grad is None for value in (*weights.exact.values(), *model.parameters()))


def test_in_float32_gives_the_exact_weights_and_takes_them_back() -> None:
    model = model_of()
    exact = {name: value.detach().clone() for name, value in model.named_parameters()}
    weights = Weights(model, "bf16")
    rounded = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert all(value.dtype == torch.bfloat16 for value in rounded.values())
    assert any(not torch.equal(rounded[name].float(), exact[name]) for name in exact)
    with pytest.raises(KeyError), weights.in_float32():
        assert all(torch.equal(value, exact[name]) for name, value in model.named_parameters())
        raise KeyError
    for name, value in model.named_parameters():
        assert value.dtype == torch.bfloat16 and torch.equal(value, rounded[name])


def test_float32_is_left_alone() -> None:
    model = model_of()
    own = dict(model.named_parameters())
    weights = Weights(model, "fp32")
    assert all(weights.exact[name] is value for name, value in own.items())


def test_buffers_and_what_the_architecture_wants_stay_float32() -> None:
    class Model(nn.Module):
        _keep_in_fp32_modules = ["router"]
        _keep_in_fp32_modules_strict = ["scale"]

        def __init__(self) -> None:
            super().__init__()
            self.router, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.full((4,), 1 / 3))
            self.register_buffer("frequencies", torch.full((4,), 1 / 3))
            self.count = nn.Parameter(torch.ones(4, dtype=torch.float64), requires_grad=False)

    model = Model()
    exact = round_to_bf16(model)
    assert set(exact) == {"other.weight", "other.bias"}
    kinds = {name: value.dtype for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert kinds == {
        "scale": torch.float32, "count": torch.float64, "router.weight": torch.float32, "router.bias": torch.float32,
        "other.weight": torch.bfloat16, "other.bias": torch.bfloat16, "frequencies": torch.float32,
    }  # fmt: skip


def test_rotary_frequencies_of_a_real_family_are_not_rounded() -> None:
    from scripts import families

    model = families.made("AutoModelForCausalLM", "llama")
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert before
    Weights(model, "bf16")
    assert all(
        value.dtype == torch.float32 and torch.equal(value, before[name]) for name, value in model.named_buffers()
    )
    assert all(value.dtype == torch.bfloat16 for value in model.parameters())


LM: dict[str, Any] = {"model": {"preset": "gpt2-nano", "vocab_size": 300}}


def test_tied_weights_stay_one_and_get_both_gradients(text_file: Path, tmp_path: Path) -> None:
    """A GPT-2's embedding is its output layer: within 2 % of the gradient in float32, and far off without one part."""

    def gradient(precision: str) -> dict[str, torch.Tensor]:
        train = {"sequence": 24, "batch": 4, "micro_batch": 2, "precision": precision}
        session = session_of("text-generation", tmp_path / "none", **LM, data=str(text_file), train=train)
        session.join()
        job = session.job
        assert job.model.lm_head.weight is job.model.transformer.wte.weight
        accumulate(job.model, job.stack, job.task, job.loader.step(0), "cpu", 0)
        return {name: value.grad for name, value in job.weights.exact.items()}

    fp32, bf16 = gradient("fp32"), gradient("bf16")
    assert apart(bf16, fp32) < 0.02
    name = "transformer.wte.weight"
    assert name in fp32 and "lm_head.weight" not in fp32
    assert apart({name: bf16[name]}, {name: fp32[name]}) < 0.02


def test_the_exported_model_and_the_checkpoint_hold_the_exact_weights(text_file: Path, tmp_path: Path) -> None:
    run = burnish.train(
        "text-generation", terminal=Terminal(quiet=True), **LM, data=str(text_file), generate={"max_tokens": 2},
        train={"sequence": 24, "batch": 4, "precision": "bf16", "length": "3 steps", "evaluate_every": "1000 steps"},
        checkpoint={"every": "1 steps"}, run={"dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert isinstance(run, Run)
    saved = load_file(run.path / "checkpoints" / "step-000003" / "model.safetensors")
    exported = load_file(run.path / "model" / "model.safetensors")
    assert set(exported) <= set(saved)
    for name, value in exported.items():
        assert value.dtype == torch.float32 and torch.equal(value, saved[name]), name
    rounded = [torch.equal(value, value.bfloat16().float()) for value in exported.values()]
    assert sum(rounded) < len(rounded) / 2  # they are no rounded copies
    # What goes on from the checkpoint computes with the rounding of exactly these weights.
    session = trained(
        "text-generation", run.path, **LM, data=str(text_file), generate={"max_tokens": 2}, checkpoint={"every": "1 steps"},
        train={"sequence": 24, "batch": 4, "precision": "bf16", "length": "3 steps", "evaluate_every": "1000 steps"},
    )  # fmt: skip
    assert all(torch.equal(weights_of(session)[name], saved[name]) for name in exported)
    for name, value in session.job.model.named_parameters():
        assert torch.equal(value, saved[name].bfloat16()), name


WINDOW, CLOSE = 50, 0.005
"""Means over so many steps of the loss in bfloat16 lie within this share of float32's."""


def test_the_loss_curve_of_500_steps_is_that_of_float32(text_file: Path, tmp_path: Path) -> None:
    """The same rows in the same order; every window and the last one. Weights that are bfloat16 themselves fail it."""

    def curve(precision: str, *, master: bool = True) -> np.ndarray:
        settings = {
            "data": {"train": str(text_file), "holdout": "1%"},
            "train": {
                "sequence": 24, "batch": 4, "length": "500 steps", "precision": precision, "evaluate_every": "1000 steps",
            },
            "optim": {"lr": 1e-3},
            "checkpoint": {"every": "1000 steps"},
        }  # fmt: skip
        name = f"{precision}-{master}"
        with pytest.MonkeyPatch.context() as patch:
            if not master:
                patch.setattr(Weights, "publish", rounding)
            session = trained("text-generation", tmp_path / name, **LM, **settings)
        losses = np.array([line["loss"] for line in session.folder.log_lines() if "loss" in line])
        assert len(losses) == 500
        return losses.reshape(-1, WINDOW).mean(axis=1)

    publish = Weights.publish

    @torch.no_grad()
    def rounding(self: Weights, *, everything: bool = False) -> None:
        for value in self.exact.values():
            value.copy_(value.bfloat16())
        publish(self, everything=everything)

    fp32, bf16 = curve("fp32"), curve("bf16")
    assert fp32[-1] < 0.6 * fp32[0]  # it learns
    assert np.abs(bf16 / fp32 - 1).max() <= CLOSE
    bad = curve("bf16", master=False)
    assert np.abs(bad / fp32 - 1).max() > CLOSE
