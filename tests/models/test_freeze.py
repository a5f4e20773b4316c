"""Freezing: no gradient, no optimizer state, no dropout below the line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from burnish.config import FreezeSettings, OptimSettings
from burnish.errors import UserError
from burnish.models.freeze import freeze, set_training_mode
from burnish.models.load import build, make_config, trainable_count
from burnish.optim.optimizers import Optimizers


def _classifier(folder: Path):
    return build("AutoModelForSequenceClassification", make_config(folder, {"num_labels": 2}, None), folder)[0]


def _decoder():
    config = make_config({"model_type": "gpt2", "n_layer": 3, "n_embd": 8, "n_head": 2, "vocab_size": 11}, {}, 0.5)
    return build("AutoModelForCausalLM", config, None)[0]


def _trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_lowest_layers(tiny_bert: Path) -> None:
    model = _classifier(tiny_bert)
    still = freeze(model, FreezeSettings(layers=1))
    assert all(not n.startswith(("bert.embeddings", "bert.encoder.layer.0")) for n in _trained(model))
    assert {"classifier.weight", "bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.weight"} <= _trained(
        model
    )
    set_training_mode(model, still)
    assert not model.bert.embeddings.dropout.training and not model.bert.encoder.layer[0].output.dropout.training
    assert model.bert.encoder.layer[1].output.dropout.training and model.dropout.training
    optimizers = Optimizers(model, OptimSettings(), 1e-3)
    frozen_before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    model(torch.tensor([[2, 7, 8, 3]]), labels=torch.tensor([1])).loss.backward()
    optimizers.step()
    assert all(
        p.grad is None and torch.equal(p, frozen_before[n]) for n, p in model.named_parameters() if not p.requires_grad
    )
    assert not any(key.startswith(("bert.embeddings", "bert.encoder.layer.0")) for key in optimizers.state())


def test_a_decoders_embeddings_and_their_dropout() -> None:
    """GPT-2 keeps two embedding tables and a dropout beside its layers; the head is tied to one of them."""
    model = _decoder()
    still = freeze(model, FreezeSettings(layers=2))
    assert _trained(model) == {n for n, _ in model.named_parameters() if "h.2." in n or "ln_f" in n}
    set_training_mode(model, still)
    assert not model.transformer.drop.training and model.transformer.h[2].attn.resid_dropout.training


def test_whole_backbone(tiny_bert: Path) -> None:
    model = _classifier(tiny_bert)
    freeze(model, FreezeSettings(layers="all"))
    assert _trained(model) == {"classifier.weight", "classifier.bias"}
    assert trainable_count(model) == 2 * 32 + 2


def test_patterns(tiny_bert: Path) -> None:
    model = _classifier(tiny_bert)
    freeze(model, FreezeSettings(pattern=("*.attention.*", "bert.pooler.*")))
    assert all(".attention." not in n and "pooler" not in n for n in _trained(model))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (FreezeSettings(layers=3), "the model has 2 layers"),
        (FreezeSettings(pattern=("nothing*",)), "matches no parameter"),
        (FreezeSettings(pattern=("*",)), "every parameter is frozen"),
    ],
)
def test_impossible_requests(tiny_bert: Path, settings: FreezeSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        freeze(_classifier(tiny_bert), settings)


def test_a_tied_decoder_cannot_be_frozen_whole() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        freeze(_decoder(), FreezeSettings(layers="all"))
