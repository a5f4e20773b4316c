"""Spoken commands: what is tested is said in no word order that was heard in training, by nobody who was."""

from __future__ import annotations

import random
import sys
from itertools import combinations

import pytest

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
    assert {word for text in asked for word in text.split()} <= {word for text in heard for word in text.split()}
    for voices in (spoken.FLITE, spoken.ESPEAK):
        assert all(not set(voices[one]) & set(voices[other]) for one, other in combinations(voices, 2))


def test_speakers_that_are_held_out_have_no_kin_in_training() -> None:
    """Numbered voices of one name are variations of one; `f1` and `m1` are different speakers."""
    family = lambda name: name if len(name) == 2 else name.rstrip("0123456789")  # noqa: E731
    kin = {part: set(map(family, names)) for part, names in spoken.ESPEAK.items()}
    assert not kin["train"] & (kin["validation"] | kin["test"])


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_sentences_and_voices_follow_from_the_seed(part: str) -> None:
    jobs = list(spoken.jobs(part, ROOT, random.Random(part)))
    assert jobs == list(spoken.jobs(part, ROOT, random.Random(part)))
    assert len(jobs) == len({job["file"] for job in jobs}) == spoken.ESPEAK_COUNTS[part] * len(spoken.ESPEAK[part])
    texts = {job["text"] for job in jobs}
    assert len(texts) > 0.9 * len(jobs) or part != "train"
    for held_out in ("validation", "test"):
        assert all((order_of(text) in spoken.ORDERS[held_out]) == (part == held_out) for text in texts)
