"""What people may say to an assistant of a home: commands as people say them, and requests that are none of its business.

    python scripts/assets.py home-requests

Rows of `home-commands` come with courtesies around a third of them, those of rare intents more often; requests for something
else are written in `elsewhere.txt`, with courtesies too, and have the intent `none`. The sides stay apart: a request is on
one of them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The intent of what the assistant does not do.
NONE = "none"
_BEFORE = [
    "please",
    "could you",
    "can you",
    "would you",
    "hey",
    "i want you to",
    "could you please",
    "can you please",
    "okay",
]
_AFTER = ["please", "for me", "now", "for me please", "thanks"]
#: How often a request for something else is said, each time in another way.
_TIMES = 5
#: Of an intent with fewer rows to learn from, rows are said again in other ways.
_LEAST = 60


def said(text: str, draw: random.Random) -> tuple[list[str], list[str]]:
    """Return courtesies before and after a text."""
    before = draw.choice(_BEFORE).split() if draw.random() < 0.6 else []
    after = draw.choice(_AFTER).split() if not before or draw.random() < 0.2 else []
    return before, after


def wrapped(row: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a row with courtesies around it, which are outside of its slots."""
    before, after = said(row["text"], draw)
    return {
        "text": " ".join([*before, row["text"], *after]),
        "intent": row["intent"],
        "tokens": [*before, *row["tokens"], *after],
        "tags": ["O"] * len(before) + row["tags"] + ["O"] * len(after),
    }


def elsewhere(side: str) -> Iterator[dict[str, Any]]:
    """Yield the requests of a side that have nothing to do with a home."""
    for text in Path(__file__).with_name("elsewhere.txt").read_text(encoding="utf-8").splitlines():
        place = hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % 10
        if side != ("validation" if place == 0 else "test" if place == 1 else "train"):
            continue
        draw, words = random.Random(text), text.split()
        row = {"text": text, "intent": NONE, "tokens": words, "tags": ["O"] * len(words)}
        rows = [row, *(wrapped(row, draw) for _ in range(_TIMES - 1))]
        yield from {one["text"]: one for one in rows}.values()


def home_requests(commands: Path, target: Path) -> None:
    """Write each side of `home-commands` with courtesies, and requests for something else."""
    target.mkdir()
    for side in ("train", "validation", "test"):
        draw = random.Random(side)
        rows = [json.loads(line) for line in (commands / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]
        found = [wrapped(row, draw) if draw.random() < 1 / 3 else row for row in rows]
        if side == "train":
            counts = Counter(row["intent"] for row in rows)
            for intent, count in counts.items():
                few = [row for row in rows if row["intent"] == intent]
                found += [wrapped(draw.choice(few), draw) for _ in range(_LEAST - count)]
        found += elsewhere(side)
        lines = (json.dumps(row, ensure_ascii=False) for row in found)
        (target / f"{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
