"""nanoGPT's loop: it learns, keeps to its budget, and every held-out character is scored exactly once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.nanogpt import Gpt, Recipe, Trained, Vocabulary, evaluate, make_optimizer, train, windows

TEXT = "Now is the winter of our discontent made glorious summer by this sun of York;\n" * 20
TINY = Recipe(layers=1, heads=2, width=16, block=8, batch=8, warmup=5, iterations=60, lr=1e-2, last_lr=1e-3)


def untrained(text: str, recipe: Recipe = TINY) -> Trained:
    """Return a model as it is before training."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of(text)
    return Trained(Gpt(recipe, len(vocabulary.characters)), vocabulary, [], {})


def test_training_lowers_the_loss():
    trained = train(TEXT, TINY, seed=0)
    assert len(trained.losses) == 60
    assert sum(trained.losses[-5:]) < 0.8 * sum(trained.losses[:5])
    before = evaluate(untrained(TEXT), TEXT[:200], TINY.block)["bits_per_byte"]
    assert evaluate(trained, TEXT[:200], TINY.block)["bits_per_byte"] < before


def test_equal_seeds_give_equal_runs():
    short = replace(TINY, iterations=8)
    assert train(TEXT, short, seed=1).losses == train(TEXT, short, seed=1).losses
    assert train(TEXT, short, seed=1).losses != train(TEXT, short, seed=2).losses


def test_keeps_to_a_budget_of_processor_time():
    trained = train(TEXT, replace(TINY, warmup=40), seed=0, cpu_seconds=1.0)
    assert len(trained.losses) > 40
    assert trained.spent["cpu"] == pytest.approx(1.0, rel=0.5)


def test_the_recipe_is_the_published_one():
    """Source: nanoGPT, config/train_shakespeare_char.py and the README's settings for a processor."""
    recipe = Recipe()
    model = Gpt(recipe, 65)
    assert sum(value.numel() for value in model.parameters()) == 804_096
    assert recipe.lr_at(0, 2000) == pytest.approx(1e-3 / 101)
    assert recipe.lr_at(100, 2000) == pytest.approx(1e-3)
    assert recipe.lr_at(1050, 2000) == pytest.approx((1e-3 + 1e-4) / 2)
    assert recipe.lr_at(2000, 2000) == pytest.approx(1e-4)
    decaying, others = make_optimizer(model, recipe).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(others["params"]) == 2 * recipe.layers + 1


def test_initial_weights_are_as_published():
    torch.manual_seed(0)
    model = Gpt(Recipe(), 65)
    assert model.characters.weight.std().item() == pytest.approx(0.02, rel=0.05)
    ends_a_branch = model.get_parameter("layers.0.feed_out.weight")
    assert ends_a_branch.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)


def test_a_later_character_does_not_change_an_earlier_prediction():
    model = untrained(TEXT).model
    ids = torch.tensor([[1, 2, 3, 4]])
    other = torch.tensor([[1, 2, 3, 5]])
    assert torch.equal(model(ids)[:, :3], model(other)[:, :3])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12, 13, 100])
def test_windows_score_every_character_once(length: int):
    scored = []
    for end, first in windows(length, 8):
        assert 0 < end - first <= 8
        scored += range(first, end)
    assert scored == list(range(length))
    assert all(end - first <= 4 for end, first in windows(length, 8)[1:])


def test_bits_are_those_of_each_window_by_itself():
    trained, text = untrained(TEXT), TEXT[:37]
    ids, _ = trained.vocabulary.encode("\n" + text)
    nats = 0.0
    for end, first in windows(len(text), TINY.block):
        at = slice(end - TINY.block, end)
        likely = trained.model(ids[None, at])[0].log_softmax(-1)
        for position in range(first, end):
            nats -= likely[position - end, ids[position + 1]].item()
    found = evaluate(trained, text, TINY.block)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 37, rel=1e-5)
    assert found["held_out_bytes"] == 37


def test_an_unknown_character_costs_eight_bits_a_byte_more():
    trained = untrained("ab\n" * 50)
    stand_in = trained.vocabulary.characters[0]
    plain = evaluate(trained, f"abab{stand_in}", 4)
    one, two = evaluate(trained, "ababZ", 4), evaluate(trained, "ababé", 4)
    assert (plain["unknown_characters"], one["unknown_characters"]) == (0, 1)
    assert one["bits_per_byte"] * 5 == pytest.approx(plain["bits_per_byte"] * 5 + 8, rel=1e-5)
    assert two["held_out_bytes"] == 6
    assert two["bits_per_byte"] * 6 == pytest.approx(plain["bits_per_byte"] * 5 + 16, rel=1e-5)
