"""GPT-3's banded layers: the band as the formula has it, on every path, with a cache, and nothing else than GPT-2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import burnish
from burnish.models.load import make_config
from burnish.models.scratch import find_preset
from burnish.models.stack import Stack
from burnish.terminal import Terminal

SMALL = {**find_preset("gpt3-nano").options, "vocab_size": 60, "n_layer": 4, "n_embd": 32, "n_positions": 64}


def model_of(band: int, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = make_config({"model_type": "gpt3", **SMALL, "attention_band": band}, {}, None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    for parameter in model.parameters():  # weights that would let a wrong mask be seen
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def dense(model: Any) -> GPT2LMHeadModel:
    plain = GPT2LMHeadModel(make_config({"model_type": "gpt2", **SMALL}, {}, None)).double().eval()
    plain.load_state_dict(model.state_dict())
    return plain


def ids(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(1, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_second_layer_sees_the_band_only(attention: str) -> None:
    """Each layer's attention written out; a band as long as the text leaves a GPT-2."""
    model = model_of(6, attention)
    inputs, outputs = [], []
    for block in model.transformer.h:
        block.attn.register_forward_pre_hook(lambda module, args, kwargs: inputs.append(args[0]), with_kwargs=True)
        block.attn.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with torch.no_grad():
        model(ids())
    back = torch.arange(40)[:, None] - torch.arange(40)
    for index, (block, x, found) in enumerate(zip(model.transformer.h, inputs, outputs, strict=True)):
        q, k, v = (part.view(2, 40, 4, 8).transpose(1, 2) for part in block.attn.c_attn(x).split(32, 2))
        hidden = (back < 0) | (back >= (6 if index % 2 else 1000))
        weights = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(hidden, -math.inf).softmax(-1)
        wanted = block.attn.c_proj((weights @ v).transpose(1, 2).flatten(2))
        assert torch.allclose(found, wanted, atol=1e-6), index
    with torch.no_grad():
        assert torch.allclose(model_of(40).forward(ids()).logits, dense(model_of(40))(ids()).logits, atol=1e-10)
        assert not torch.allclose(model(ids()).logits, dense(model)(ids()).logits, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_and_padding_on_the_left_change_nothing(attention: str) -> None:
    model, given = model_of(6, attention), ids()
    with torch.no_grad():
        whole = model(given).logits
        first = model(given[:, :25], use_cache=True)
        parts = [first.logits]
        for start, end in ((25, 26), (26, 33), (33, 40)):
            parts.append(model(given[:, start:end], past_key_values=first.past_key_values, use_cache=True).logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10)
        shifted = torch.cat([torch.zeros(2, 5, dtype=torch.long), given], 1)
        mask = torch.ones_like(shifted).masked_fill(torch.arange(45) < 5, 0)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(shifted, attention_mask=mask, position_ids=places).logits[:, 5:]
        assert torch.allclose(found, whole, atol=1e-10)


def test_rows_end_to_end_have_the_band() -> None:
    model, lengths = model_of(6), [7, 3, 40, 12]
    stack, given = Stack(model), ids(4)
    with torch.no_grad():
        alone = [model(given[row : row + 1, :length]).logits[0] for row, length in enumerate(lengths)]
        with stack.rows(lengths):
            together = model(given).logits
    for row, length in enumerate(lengths):
        assert torch.allclose(together[row, :length], alone[row], atol=1e-5), row


def test_weights_start_as_gpt2s() -> None:
    """The layers that add to the residual included, which code outside of transformers would have passed over."""
    torch.manual_seed(0)
    options = {**find_preset("gpt3-nano").options, "n_layer": 6}
    model = AutoModelForCausalLM.from_config(make_config({"model_type": "gpt3", **options}, {}, None))
    for name, value in model.named_parameters():
        if value.ndim == 2:
            expected = 0.02 / math.sqrt(2 * 6) if "c_proj" in name else 0.02
            assert float(value.detach().std()) == pytest.approx(expected, rel=0.03), name
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_run_trains_and_the_dense_one_opens_as_gpt2(text_file: Path, tmp_path: Path) -> None:
    for preset, name in (("gpt3-nano", "GPT2LMHeadModel"), ("gpt3-nano-banded", "Gpt3LMHeadModel")):
        run = burnish.train(
            "text-generation", terminal=Terminal(quiet=True), model={"preset": preset, "vocab_size": 300}, data=str(text_file),
            train={"length": "6 steps", "batch": 4, "sequence": 48, "precision": "fp32"}, run={"dir": str(tmp_path / preset)},
        )  # fmt: skip
        assert run.folder.read_json(run.path / "model" / "config.json")["architectures"] == [name]
        assert run.folder.read_json(run.folder.plan)["arrangement"] == "packed"
        assert run.predict("The old king", max_tokens=3)["generated"]
