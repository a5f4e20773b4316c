"""From a number of operations to a model and its training: the papers' own points, exact counts, what the user gives stands."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from torch import nn

import burnish
from burnish.api import resolve
from burnish.errors import UserError
from burnish.models.dial import TOKENS_PER_PARAMETER, turned
from burnish.models.load import make_config, skeleton
from burnish.terminal import Terminal

FAMILIES = {"gpt2": "gpt2-nano", "gpt3": "gpt3-125m", "llama3": "llama3-nano", "qwen3": "qwen3-nano"}


def test_chinchilla_gets_its_published_size() -> None:
    """Hoffmann et al. 2022, Table 1 and section 4: 70 B parameters, 1.4 T tokens for 5.76e23 operations."""
    dial = turned(5.76e23, "gpt3-175b", None)
    assert dial.parameters == pytest.approx(70e9, rel=0.1)
    assert dial.tokens == pytest.approx(1.4e12, rel=0.1)


@pytest.mark.parametrize("preset", FAMILIES.values())
@pytest.mark.parametrize("compute", [1e13, 1e15, 1e18])
def test_the_model_made_has_the_counted_parameters_and_spends_the_operations(preset: str, compute: float) -> None:
    dial = turned(compute, preset, 2048)
    options = {"model_type": dial.preset.model_type, **dial.preset.options}
    model = skeleton("AutoModelForCausalLM", make_config(options, {}, None))
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    products = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in looked_up)
    products += model.get_output_embeddings().weight.numel()  # one matrix for both ends
    assert products == pytest.approx(dial.parameters, rel=0.1)  # odd numbers of heads cannot share keys by twos
    assert 6 * dial.parameters * dial.tokens == pytest.approx(compute, rel=1e-6)
    assert 2 < dial.tokens / dial.parameters < 10 * TOKENS_PER_PARAMETER


def test_more_operations_never_make_a_smaller_model_a_smaller_batch_or_a_larger_rate() -> None:
    dials = [turned(10.0**power, "llama3-nano", 2048) for power in range(12, 25)]
    for smaller, larger in pairwise(dials):
        assert larger.layers >= smaller.layers
        assert larger.batch_tokens > smaller.batch_tokens
        assert larger.lr < smaller.lr


def test_what_is_given_stands() -> None:
    given = {"preset": "gpt2-nano", "data": "x.txt", "model": {"compute": 1e14}}
    derived, *_ = resolve("text-generation", given)
    chosen, *_ = resolve("text-generation", {**given, "train": {"batch": 7}, "optim": {"lr": 0.5}})
    assert (chosen.train.batch, chosen.optim.lr) == (7, 0.5)
    assert derived.train.batch not in (7, 32)
    assert chosen.train.length == derived.train.length != "3 epochs"


def test_the_plan_prints_each_derivation(text_file: Path) -> None:
    plan = burnish.train(
        "text-generation",
        preset="llama3-nano",
        data=str(text_file),
        model={"compute": 1e12, "vocab_size": 512},
        dry_run=True,
        terminal=Terminal(quiet=True),
    )
    assert isinstance(plan, dict)
    shown = " ".join(" ".join(row) for row in plan["model"]["dial"])
    for source in ("Hoffmann et al. 2022", "DeepSeek-AI 2024", "nanochat"):
        assert source in shown
    assert "passes over the data" in plan["why"]["total_steps"]
    assert plan["lr"] == turned(1e12, "llama3-nano", 512).lr


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"path": "some/model"}, "model.compute: a pretrained model has its size already; give it with --preset only."),
        ({"preset": "bert-nano"}, "model.compute: bert has no dial; take a preset of gpt2, gpt3, llama3, qwen3."),
        (
            {"preset": "fastspeech-nano"},  # has no vocabulary of its own
            "model.compute: fastspeech has no dial; take a preset of gpt2, gpt3, llama3, qwen3.",
        ),
    ],
)
def test_models_without_a_dial_are_refused(model: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve("text-generation", {"model": {**model, "compute": 1e14}, "data": "x.txt"})
    assert str(caught.value) == sentence
