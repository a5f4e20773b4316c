"""Our Adam step against the published formulas, written out here."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.config import OptimSettings
from burnish.optim.optimizers import OPTIMIZERS, Optimizers, parameter_groups


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(5, 3, dtype=torch.float64)


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_adam_is_the_published_formula(name: str, decay: float) -> None:
    """First and second moment, bias correction, epsilon outside the root, decoupled decay: 1e-12 over 50 steps in float64.

    Source: Kingma and Ba 2015, Algorithm 1; Loshchilov and Hutter 2019, Algorithm 2.
    """
    model = _Model()
    lr, beta1, beta2, eps = 3e-2, 0.9, 0.98, 1e-6
    settings = OptimSettings(name=name, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay)
    optimizers = Optimizers(model, settings, lr)
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in theta.items()}
    v = {n: torch.zeros_like(p) for n, p in theta.items()}
    generator = torch.Generator().manual_seed(1)
    for t in range(1, 51):
        factor = 1 - t / 100
        optimizers.set_lr(factor)
        for n, p in model.named_parameters():
            gradient = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            p.grad = gradient.clone()
            m[n] = beta1 * m[n] + (1 - beta1) * gradient
            v[n] = beta2 * v[n] + (1 - beta2) * gradient**2
            corrected_m, corrected_v = m[n] / (1 - beta1**t), v[n] / (1 - beta2**t)
            own_decay = decay if p.ndim == 2 else 0.0
            theta[n] = theta[n] - lr * factor * own_decay * theta[n]
            theta[n] = theta[n] - lr * factor * corrected_m / (corrected_v.sqrt() + eps)
        optimizers.step()
    for n, p in model.named_parameters():
        assert float((p.detach() - theta[n]).abs().max()) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_resumes_bit_equal(name: str) -> None:
    """Ten steps, state out and in again, ten more: the same bits as twenty steps."""

    def model_and_optimizers() -> tuple[torch.nn.Module, Optimizers]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        return model, Optimizers(model, OptimSettings(name=name), 1e-2)

    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :1] * 2 - x[:, 1:2]

    def steps(model: torch.nn.Module, optimizers: Optimizers, count: int) -> float:
        for _ in range(count):
            optimizers.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizers.step()
        return float(loss.detach())

    model, optimizers = model_and_optimizers()
    first = steps(model, optimizers, 10)
    saved = (
        {n: p.detach().clone() for n, p in model.state_dict().items()},
        {n: t.clone() for n, t in optimizers.state().items()},
    )
    assert steps(model, optimizers, 10) < first
    other, other_optimizers = model_and_optimizers()
    other.load_state_dict(saved[0])
    other_optimizers.load_state(saved[1])
    steps(other, other_optimizers, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_groups() -> None:
    """Only hidden matrices decay; rates fall by layer from the top; patterns scale them."""
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    settings = OptimSettings(layer_decay=0.5, lr_scale=("classifier*=10",), weight_decay=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, settings, 1.0):
        for p in group["params"]:
            found[names[id(p)]] = (group["kind"], group["lr"], group["weight_decay"])
    assert found["classifier.weight"] == ("matrix", 10.0, 0.1)
    assert found["bert.encoder.layer.1.output.dense.weight"] == ("matrix", 0.5, 0.1)
    assert found["bert.encoder.layer.0.output.dense.bias"] == ("vector", 0.25, 0.0)
    assert found["bert.embeddings.word_embeddings.weight"] == ("embedding", 0.125, 0.0)
    assert len(found) == len(list(model.parameters()))


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    from burnish.models.load import _from_config, make_config

    model = _from_config(
        "AutoModelForCausalLM",
        make_config({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 9}, {}, None),
    )
    adamw, muon = Optimizers(model, OptimSettings(name="muon"), 1e-3).all
    names = {id(p): n for n, p in model.named_parameters()}
    of = lambda optimizer: {names[id(p)] for g in optimizer.param_groups for p in g["params"]}  # noqa: E731
    assert of(muon) == {f"transformer.h.0.{n}.weight" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert "transformer.wte.weight" in of(adamw) and "transformer.ln_f.bias" in of(adamw)


def test_schedules_are_functions_of_progress() -> None:
    """Each shape at the start, the middle and the end, after a warm-up of ten steps."""
    from burnish.config import ScheduleSettings
    from burnish.optim.schedules import SCHEDULES, Schedule

    expected = {
        "constant": (1, 1, 1),
        "linear": (1, 0.5, 0),
        "exponential": (1, 0.1, 0.01),
        "cosine": (1, 0.5, 0),
        "polynomial": (1, 0.25, 0),
        "wsd": (1, 1, 0),
        "inverse-sqrt": (1, 1 / math.sqrt(1 + 50 / 10), 1 / math.sqrt(1 + 100 / 10)),
    }
    assert set(expected) == set(SCHEDULES)
    for name, (start, middle, end) in expected.items():
        schedule = Schedule(ScheduleSettings(name=name), total_steps=111, warmup_steps=10)
        assert [schedule.factor(s) for s in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
        assert [schedule.factor(s) for s in (10, 60, 110)] == pytest.approx([start, middle, end], abs=1e-12), name
