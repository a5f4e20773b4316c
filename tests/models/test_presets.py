"""Presets: every dimension and parameter count as published, initialised as GPT-2's paper and code do."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.models.load import _from_config, dropout_of, make_config, parameter_count, skeleton
from burnish.models.scratch import find_preset, presets

PUBLISHED = {
    "gpt2": (12, 768, 12, 124_439_808),
    "gpt2-medium": (24, 1024, 16, 354_823_168),
    "gpt2-large": (36, 1280, 20, 774_030_080),
    "gpt2-xl": (48, 1600, 25, 1_557_611_200),
}


def _config(name: str):
    preset = find_preset(name)
    return make_config({"model_type": preset.model_type, **preset.options}, {}, None)


@pytest.mark.parametrize("name", presets())
def test_parameters_are_as_stated_and_dropout_is_off(name: str) -> None:
    """Counted on the meta device, where even the largest takes no memory."""
    config = _config(name)
    assert parameter_count(skeleton(find_preset(name).auto_class, config)) == find_preset(name).parameters
    assert dropout_of(config) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_gpt2_is_the_published_one(name: str) -> None:
    layers, width, heads, parameters = PUBLISHED[name]
    config = _config(name)
    assert (config.n_layer, config.n_embd, config.n_head) == (layers, width, heads)
    assert (config.n_positions, config.vocab_size, config.n_inner) == (1024, 50257, None)
    assert find_preset(name).parameters == parameters


def test_the_smallest_has_about_a_million() -> None:
    assert 0.9e6 < presets()["gpt2-nano"].parameters < 1.2e6


def test_initialisation_is_gpt2s() -> None:
    """Normal(0, 0.02); residual projections divided by the root of their number (Radford et al. 2019, section 2.3)."""
    torch.manual_seed(0)
    model = _from_config("AutoModelForCausalLM", _config("gpt2-mini"))
    layers = 6
    for name, value in model.named_parameters():
        if "ln_" in name:
            assert torch.equal(value, torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)), (
                name
            )
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            expected = 0.02 / math.sqrt(2 * layers) if "c_proj" in name else 0.02
            value = value.detach()
            assert float(value.std()) == pytest.approx(expected, rel=0.02), name
            assert abs(float(value.mean())) < 0.02 * expected * 3, name
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_fused_activation_is_gpt2s() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    assert torch.allclose(ACT2FN["gelu_pytorch_tanh"](x), ACT2FN["gelu_new"](x), atol=1e-12)
