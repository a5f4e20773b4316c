"""Write what the LaMDA recipes learn from: dialogs to read on, answers, and ratings of answers.

    python scripts/assets.py dialogs alignment injections && python scripts/dialogs.py

Nobody rated these answers; the ratings follow from the data (docs/lamda.md says how). Dialogs are on three sides that share
none: `train`, `judge` (for a second rater) and `test`. Everything lands in `.assets/lamda/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from burnish.generate.rank import answer_prompt, rating_prompt

ASSETS = Path(__file__).resolve().parent.parent / ".assets"
TARGET = ASSETS / "lamda"
#: Shares of the dialogs on each side; the rest is the test's.
SIDES = {"train": 0.65, "judge": 0.2}
#: Another one parts the dialogs anew; the test side of the first ("") was looked at while the recipes were made.
SALT = "second"
#: Turns that an answer sees.
CONTEXT = 2
#: A context and an answer have at most this many characters together; longer ones are left out.
LONGEST = 600
#: Replies are compared with those of about their length: this many characters more or less make another class.
_CHARACTERS = 15
#: Of each length, this share with the commonest words is generic, and as many with the rarest are the opposite.
_SHARE = 0.3
#: Rows of the training side that are learned; the rarest kind is repeated, of the others some are drawn.
_LEARNED = {"RESPONSE": 2_000, "SENSIBLE": 20_000, "SPECIFIC": 1_500, "INTERESTING": 1_500}
_SAFETY_REPEATS = 5
#: Rows of another side that are scored as a whole.
_TRIED = 1_500


@dataclass(frozen=True)
class Rated:
    """An answer in its context, with one rating."""

    context: str
    reply: str
    attribute: str
    rating: int


@dataclass(frozen=True)
class Reply:
    """A turn of a dialog with those before it."""

    dialog: str
    context: str
    text: str


def side_of(name: str) -> str:
    """Return the side on which a dialog or a prompt is, by a hash of its name."""
    place = int.from_bytes(hashlib.blake2b(f"{SALT} {name}".encode(), digest_size=8).digest(), "big") / 2**64
    for side, share in SIDES.items():
        if place < share:
            return side
        place -= share
    return "test"


def replies(dialogs: Iterable[dict]) -> list[Reply]:
    """Return each turn that answers another, with at most `CONTEXT` turns before it, one a line."""
    found = []
    for dialog in dialogs:
        turns = [" ".join(turn.split()) for turn in dialog["turns"]]
        for place in range(1, len(turns)):
            context = "\n".join(turns[max(0, place - CONTEXT) : place])
            if turns[place] and context.strip() and len(context) + len(turns[place]) <= LONGEST:
                found.append(Reply(dialog["dialog"], context, turns[place]))
    return found


def words(text: str) -> set[str]:
    """Return the words of a text.

    >>> sorted(words("You too! You?"))
    ['too', 'you']
    """
    return set(re.findall(r"[a-z0-9']+", text.lower()))


class Rarity:
    """How rare words are: the log of the inverse share of dialogs that have them."""

    def __init__(self, dialogs: Sequence[dict]):
        self._dialogs = len(dialogs)
        self._count = Counter(word for dialog in dialogs for word in words(" ".join(dialog["turns"])))

    def of(self, found: set[str]) -> float:
        """Return the mean over some words; 0 for none."""
        return sum(math.log(self._dialogs / max(1, self._count[word])) for word in found) / max(1, len(found))


def by_length(found: Iterable[Reply]) -> dict[int, list[Reply]]:
    """Return replies of about one length together."""
    classes: dict[int, list[Reply]] = {}
    for reply in found:
        classes.setdefault(min(len(reply.text) // _CHARACTERS, 15), []).append(reply)
    return classes


def ends(found: Sequence[Reply], score: dict[Reply, float]) -> tuple[list[Reply], list[Reply]]:
    """Return the replies with the lowest and those with the highest scores among replies of about their length."""
    low, high = [], []
    for alike in by_length(found).values():
        ordered = sorted(alike, key=lambda reply: (score[reply], reply.text))
        count = int(len(ordered) * _SHARE)
        low += ordered[:count]
        high += ordered[len(ordered) - count :]
    return low, high


def conversation_ratings(found: Sequence[Reply], rarity: Rarity, draw: random.Random) -> list[Rated]:
    """Return ratings of replies by what other replies and dialogs there are.

    SENSIBLE: a reply where it was given, against one of about its length from another dialog.
    SPECIFIC: replies with the rarest words of their length, against generic ones, with the commonest.
    INTERESTING: the same, of the words alone that the context does not have.
    """
    specific = {reply: rarity.of(words(reply.text)) for reply in found}
    interesting = {reply: rarity.of(words(reply.text) - words(reply.context)) for reply in found}
    generic, rich = ends(found, specific)
    rated = []
    for attribute, (low, high) in (("SPECIFIC", (generic, rich)), ("INTERESTING", ends(found, interesting))):
        rated += [Rated(reply.context, reply.text, attribute, 0) for reply in low]
        rated += [Rated(reply.context, reply.text, attribute, 1) for reply in high]
    known = set(generic)  # they would be sensible in many places
    for alike in by_length(reply for reply in found if reply not in known).values():
        for reply in alike:
            other = draw.choice(alike)
            rated.append(Rated(reply.context, reply.text, "SENSIBLE", 1))
            if (
                other.dialog != reply.dialog
                and other.text != reply.text
                and len(reply.context) + len(other.text) <= LONGEST
            ):
                rated.append(Rated(reply.context, other.text, "SENSIBLE", 0))
    return rated


def safety_ratings(
    alignment: Iterable[dict], injections: Iterable[dict], found: Sequence[Reply], learned: bool, draw: random.Random
) -> list[Rated]:
    """Return which answers are unsafe: the less harmless of two, and texts that try to turn an assistant; others are not.

    Args:
        learned: those to learn from, or the others, by a hash.
    """
    rated = []
    for pair in alignment:
        longest = max(len(pair["better"]), len(pair["worse"]))
        if (side_of(pair["prompt"]) == "train") == learned and len(pair["prompt"]) + longest <= LONGEST:
            rated.append(Rated(pair["prompt"], pair["better"], "UNSAFE", 0))
            rated.append(Rated(pair["prompt"], pair["worse"], "UNSAFE", 1))
    for row in injections:
        if (side_of(row["text"]) == "train") == learned and len(row["text"]) <= LONGEST // 2:
            rated.append(Rated(draw.choice(found).context, row["text"], "UNSAFE", int(row["label"] == "malicious")))
    return rated + [Rated(reply.context, reply.text, "UNSAFE", 0) for reply in draw.sample(found, len(rated))]


def learned(found: Sequence[Reply], rated: Sequence[Rated], draw: random.Random) -> tuple[list[Reply], list[Rated]]:
    """Return as many answers and ratings of each kind as the recipe has time for."""
    kinds = {kind: [row for row in rated if row.attribute == kind] for kind in _LEARNED if kind != "RESPONSE"}
    some = [draw.sample(rows, min(_LEARNED[kind], len(rows))) for kind, rows in kinds.items()]
    return draw.sample(found, min(_LEARNED["RESPONSE"], len(found))), [row for rows in some for row in rows]


def answer_rows(found: Iterable[Reply]) -> Iterator[dict[str, str]]:
    """Yield rows that teach to answer: the context and the sentinel, then the reply."""
    for reply in found:
        yield {"prompt": answer_prompt(reply.context), "text": f" {reply.text}"}


def rating_rows(rated: Iterable[Rated]) -> Iterator[dict[str, str]]:
    """Yield rows that teach to rate: the context, the reply and the attribute, then the rating."""
    for row in rated:
        yield {"prompt": rating_prompt(row.context, row.reply, row.attribute), "text": f" {row.rating}"}


def _read(name: str) -> list[dict]:
    return [json.loads(line) for line in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


def _write(name: str, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (TARGET / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write the rows of each side."""
    dialogs, alignment, injections = (_read(f"{name}.jsonl") for name in ("dialogs", "alignment", "injections"))
    TARGET.mkdir(exist_ok=True)
    rarity = Rarity([dialog for dialog in dialogs if side_of(dialog["dialog"]) != "test"])
    for side in (*SIDES, "test"):
        draw = random.Random(side)
        chosen = [dialog for dialog in dialogs if side_of(dialog["dialog"]) == side]
        found = replies(chosen)
        rated = conversation_ratings(found, rarity, draw)
        safety = safety_ratings(alignment, injections, found, side == "train", draw)
        _write(f"{side}-dialogs.jsonl", ({"text": "\n".join(dialog["turns"])} for dialog in chosen))
        _write(f"{side}-ratings.jsonl", (vars(row) for row in rated + safety))
        if side == "train":
            found, rated = learned(found, rated, draw)
            safety *= _SAFETY_REPEATS
        rows = [*answer_rows(found), *rating_rows(rated + safety)]
        _write(f"{side}-rows.jsonl", rows if side == "train" else draw.sample(rows, min(_TRIED, len(rows))))
        counts = Counter((row.attribute, row.rating) for row in rated + safety)
        print(f"{side}: {len(chosen)} dialogs, {len(found)} answers, ratings {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
