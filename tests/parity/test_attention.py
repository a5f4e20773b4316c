"""Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V in float64, for each path in use. Source: Vaswani et al. 2017, eq. 1."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class _Layer(torch.nn.Module):
    """What an attention function reads of its layer."""

    def __init__(self, causal: bool, groups: int):
        super().__init__()
        self.is_causal, self.num_key_value_groups = causal, groups
        self.config = AutoConfig.for_model("llama")


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("causal", "masked"), [(True, False), (False, False), (False, True)])
def test_sdpa_is_the_formula(causal: bool, masked: bool, groups: int) -> None:
    """Causal (decoders), full, and with padding masked (encoders); with grouped heads (Llama) and without."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 4 // groups, 7, 8, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[0, :, :, 5:] = False
    output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        _Layer(causal, groups), q, k, v, mask if masked else None, scaling=8**-0.5, dropout=0.0, is_causal=causal
    )
    expected = formula(
        q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), mask if masked else None, causal
    ).transpose(1, 2)
    assert torch.allclose(output, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_whole_models_use_that_path(kind: str) -> None:
    """Logits through the path burnish loads models with equal those of transformers' written-out attention, in float64."""
    import transformers

    size = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 50}
    config = AutoConfig.for_model(kind, **size, **({"intermediate_size": 64} if kind != "gpt2" else {}))
    from burnish.models.load import _from_config

    torch.manual_seed(0)
    auto = "AutoModelForSequenceClassification" if kind == "bert" else "AutoModelForCausalLM"
    model = _from_config(auto, config).double().eval()
    assert model.config._attn_implementation == "sdpa"
    plain = getattr(transformers, auto).from_config(config, attn_implementation="eager").double().eval()
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    if kind == "bert":
        mask[0, 6:] = 0
    with torch.no_grad():
        assert torch.allclose(
            model(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits, atol=1e-12
        )
