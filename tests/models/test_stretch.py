"""More positions than a model was made for: the angles are the papers', and what is written opens with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import burnish
from burnish.errors import UserError
from burnish.models.load import make_config, stretch
from burnish.terminal import Terminal
from scripts import families

QUIET = Terminal(quiet=True)


def model_of(context: int | None = None, kind: str = "linear") -> Any:
    config = families.made("AutoModelForCausalLM", "llama").config
    if context:
        stretch(config, context, kind)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_linear_positions_lie_between_the_old_ones() -> None:
    """Chen et al. 2023, equation 4: position p of a model stretched n times is p / n of the model before."""
    plain = model_of()
    limit = plain.config.max_position_embeddings
    wide = model_of(4 * limit)
    wide.load_state_dict(plain.state_dict())
    ids, places = torch.arange(5, 25)[None], torch.arange(20)[None]
    with torch.no_grad():
        wanted = plain(input_ids=ids, position_ids=places).logits
        found = wide(input_ids=ids, position_ids=4 * places).logits
        other = wide(input_ids=ids, position_ids=places).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_yarn_leaves_fast_angles_and_slows_the_slowest() -> None:
    plain, wide = model_of(), model_of(4 * model_of().config.max_position_embeddings, "yarn")
    before, after = plain.model.rotary_emb.inv_freq, wide.model.rotary_emb.inv_freq
    assert after[0] == before[0]
    assert float(after[-1]) == pytest.approx(float(before[-1]) / 4, rel=1e-5)


def test_a_stretched_model_trains_on_longer_rows_and_opens_as_it_is(text_file: Path, tmp_path: Path) -> None:
    def train(name: str, **more: Any) -> burnish.Run:
        settings = {"length": "3 steps", "batch": 2, "precision": "fp32"}
        run = burnish.train(
            "text-generation",
            terminal=QUIET,
            data=str(text_file),
            run={"dir": str(tmp_path / name)},
            **{**more, "train": {**settings, **more.get("train", {})}},
        )
        assert isinstance(run, burnish.Run)
        return run

    base = train("base", preset="llama3-nano", model={"vocab_size": 300}, train={"sequence": 64})
    limit = AutoConfig.from_pretrained(base.path / "model").max_position_embeddings
    longer = limit + 200
    run = train("wide", model={"path": str(base.path), "context": longer}, train={"sequence": longer})
    found = AutoConfig.from_pretrained(run.path / "model")
    assert found.max_position_embeddings == longer
    assert found.rope_parameters["rope_type"] == "yarn"
    assert found.rope_parameters["original_max_position_embeddings"] == limit
    lengths = [line["positions"] / line["rows"] for line in run.history if "loss" in line]
    assert max(lengths) > limit


@pytest.mark.parametrize(
    ("family", "context", "sentence"),
    [
        ("gpt2", 4096, "model.context: a gpt2 has no rotary positions"),
        ("llama", 8, "positions already; give more, or leave it out"),
    ],
)
def test_what_cannot_be_stretched_is_refused(family: str, context: int, sentence: str) -> None:
    config = families.made("AutoModelForCausalLM", family).config
    with pytest.raises(UserError, match=sentence):
        stretch(config, context, "yarn")


def test_angles_that_are_scaled_already_are_refused() -> None:
    values = {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    with pytest.raises(UserError, match="scaled already"):
        stretch(make_config(values, {}, None), 10_000, "yarn")
