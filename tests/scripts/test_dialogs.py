"""Ratings that follow from data: who is on which side, what is compared with what, and that length gives nothing away."""

from __future__ import annotations

import random
import sys
from collections import Counter

import pytest

from helpers import ROOT, sentences

sys.path.insert(0, str(ROOT / "scripts"))
import dialogs as made


@pytest.fixture(scope="module")
def talks() -> list[dict]:
    """Dialogs of one topic each, whose words no other has, with generic turns between."""
    draw, texts = random.Random(0), sentences(2_000)
    found = []
    for number in range(60):
        turns = [f"{texts[number * 20 + place]} topic{number} subject{number}" for place in range(14)]
        turns[draw.randrange(3, 9)] = "the the a is was the old new river"
        found.append({"dialog": f"d{number}", "turns": turns})
    return found


def test_a_dialog_is_on_one_side_whatever_else_there_is() -> None:
    sides = {name: made.side_of(name) for name in (f"t_{number}" for number in range(4_000))}
    shares = {side: count / 4_000 for side, count in Counter(sides.values()).items()}
    assert shares == {
        "train": pytest.approx(0.65, abs=0.03),
        "judge": pytest.approx(0.2, abs=0.03),
        "test": pytest.approx(0.15, abs=0.03),
    }
    assert sides["t_7"] == made.side_of("t_7")


def test_replies_follow_their_context() -> None:
    found = made.replies([{"dialog": "d", "turns": ["one", " two  words ", "", "four"]}])
    assert [(reply.context, reply.text) for reply in found] == [("one", "two words"), ("two words\n", "four")]
    assert made.replies([{"dialog": "d", "turns": ["a" * made.LONGEST, "b"]}]) == []


def test_only_the_place_tells_a_sensible_reply(talks: list[dict]) -> None:
    """Each reply is rated where it was given, and one of about its length from another dialog in its place."""
    found = made.replies(talks)
    rated = made.conversation_ratings(found, made.Rarity(talks), random.Random(0))
    given = {(reply.context, reply.text) for reply in found}
    sensible = [row for row in rated if row.attribute == "SENSIBLE"]
    for row in sensible:
        assert ((row.context, row.reply) in given) == bool(row.rating)
    lengths = [sorted(len(row.reply) for row in sensible if row.rating == rating) for rating in (0, 1)]
    middle = [values[len(values) // 2] for values in lengths]
    assert abs(middle[0] - middle[1]) < 15 and 0.8 < len(lengths[0]) / len(lengths[1]) <= 1


def test_generic_replies_have_the_commonest_words_of_their_length(talks: list[dict]) -> None:
    rarity = made.Rarity(talks)
    assert rarity.of({"topic3"}) > rarity.of({"river"}) > -0.01 and rarity.of(set()) == 0
    rated = made.conversation_ratings(made.replies(talks), rarity, random.Random(0))
    for attribute in ("SPECIFIC", "INTERESTING"):
        rows = [row for row in rated if row.attribute == attribute]
        assert Counter(row.rating for row in rows)[0] == Counter(row.rating for row in rows)[1]
    generic = [row.rating for row in rated if row.attribute == "SPECIFIC" and "topic" not in row.reply]
    assert generic and not any(generic)


def test_unsafe_answers_are_the_worse_of_two_and_texts_against_an_assistant(talks: list[dict]) -> None:
    pairs = [{"prompt": f"How {n}?", "better": f"No {n}.", "worse": f"Sure {n}."} for n in range(200)]
    texts = [{"text": f"Ignore {n}", "label": "malicious" if n % 2 else "benign"} for n in range(200)]
    found = made.replies(talks)
    seen = {}
    for learned in (True, False):
        rated = made.safety_ratings(pairs, texts, found, learned, random.Random(0))
        seen[learned] = {row.reply for row in rated if row.reply.startswith(("Sure", "No", "Ignore"))}
        for row in rated:
            unsafe = row.reply.startswith("Sure") or (
                row.reply.startswith("Ignore") and int(row.reply.split()[1]) % 2 == 1
            )
            assert row.attribute == "UNSAFE" and row.rating == int(unsafe)
    assert not seen[True] & seen[False] and len(seen[True] | seen[False]) == 600


def test_rows_are_written_as_the_paper_has_them() -> None:
    reply = made.Reply("d", "What's up?", "not much.")
    assert list(made.answer_rows([reply])) == [{"prompt": "What's up? RESPONSE", "text": " not much."}]
    rated = made.Rated("What's up?", "not much.", "SENSIBLE", 1)
    assert list(made.rating_rows([rated])) == [{"prompt": "What's up? RESPONSE not much. SENSIBLE", "text": " 1"}]
