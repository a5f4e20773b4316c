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
    """Texts of other orders say which words stand beside which; every word that is tested is heard."""
    known, asked = (list(spoken.commanded(part, 200, 0)) for part in ("texts", "test"))
    assert set(map(order_of, known)) == set(spoken.ORDERS["texts"]) and set(map(order_of, asked)) == set(
        spoken.ORDERS["test"]
    )
    heard = [text for voice in range(4) for text in spoken.drawn(400, voice)]
    assert not (set(asked) & set(known)) and not (set(asked) & set(heard))
    assert not set(spoken.VOICES["train"]) & set(spoken.VOICES["test"])
    assert {word for text in asked for word in text.split()} <= {word for text in heard for word in text.split()}


def test_sentences_follow_from_the_seed() -> None:
    for said in (spoken.drawn, lambda count, seed: spoken.commanded("test", count, seed)):
        assert list(said(20, 1)) == list(said(20, 1)) != list(said(20, 2))
