"""Spoken commands: what is tested is said in no word order that was heard in training, by nobody who was."""

from __future__ import annotations

import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import spoken


def order_of(text: str) -> str:
    """Return a command with its words for slots taken out."""
    slots = {word: f"{{{slot}}}" for slot, words in spoken.WORDS.items() for word in words}
    return " ".join(slots.get(word, word) for word in text.split())


def test_word_orders_and_voices_are_held_out() -> None:
    heard, asked = (set(map(order_of, spoken.sentences(part, 200, 0))) for part in ("train", "test"))
    assert heard == set(spoken.ORDERS["train"]) and asked == set(spoken.ORDERS["test"]) and not heard & asked
    assert not set(spoken.VOICES["train"]) & set(spoken.VOICES["test"])
    assert {word for text in spoken.ORDERS["test"] for word in text.split()} <= {
        word for text in spoken.ORDERS["train"] for word in text.split()
    }


def test_sentences_follow_from_the_seed() -> None:
    first = list(spoken.sentences("train", 20, 1))
    assert first == list(spoken.sentences("train", 20, 1)) != list(spoken.sentences("train", 20, 2))
