"""What the assistant of a home understands: held-out commands, requests written by hand, and what recognition loses.

    python -m benchmarks.assistant [assistants/home.yaml] [--spoken FOLDER]

`benchmarks/data/home_requests.tsv` was written by hand and is never trained on; requests with the intent `none` are to be
declined. FOLDER holds them as sounds, `.assets/spoken-requests` after `python scripts/assets.py spoken-requests`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from burnish.api import load_torch

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = Path(__file__).with_name("data") / "home_requests.tsv"
HELD_OUT = ROOT / ".assets" / "home-requests" / "test.jsonl"
NONE = "none"


def answered(chain: Any, said: Any) -> dict[str, Any]:
    """Return what the assistant found: `heard`, `intent` (`none` if it declines), `slots`, `seconds` of each stage."""
    found: dict[str, Any] = {"intent": NONE, "slots": {}, "seconds": {}}
    for event in chain.respond(said):
        found["seconds"][event["stage"]] = event["seconds"]
        if event["stage"] == "heard":
            found["heard"] = event["text"]
        if event["stage"] == "understood":
            found |= {"intent": event["intent"] or NONE, "slots": event.get("slots", {})}
        if event["stage"] == "declined":
            found["intent"] = NONE
        if event["stage"] == "reply":
            found["reply"] = event["text"]
    return found


def judged(rows: Sequence[tuple[str, str]], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of intents that are right among those to be carried out, and of requests declined among the others.

    Args:
        rows: text and intent.
    """
    right = [one["intent"] == intent for (_, intent), one in zip(rows, found, strict=True)]
    wanted = [intent != NONE for _, intent in rows]
    mistakes = [
        {"text": text, "intent": intent, "found": one["intent"], **({"heard": one["heard"]} if "heard" in one else {})}
        for (text, intent), one, is_right in zip(rows, found, right, strict=True)
        if not is_right
    ]
    return {
        "commands": sum(wanted),
        "intent_accuracy": _share(r for r, w in zip(right, wanted, strict=True) if w),
        "others": len(wanted) - sum(wanted),
        "declined": _share(r for r, w in zip(right, wanted, strict=True) if not w),
        "mistakes": mistakes[:40],
    }


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return round(sum(values) / max(1, len(values)), 4)


def held_out() -> list[tuple[str, str]]:
    """Return the test side of the requests: text and intent."""
    rows = (json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines())
    return [(row["text"], row["intent"]) for row in rows]


def written() -> list[tuple[str, str]]:
    """Return the requests written by hand: text and intent."""
    lines = WRITTEN.read_text(encoding="utf-8").splitlines()
    return [(text, intent) for intent, text in (line.split("\t") for line in lines)]


def spoken(chain: Any, folder: Path) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Return the requests that lie in a folder as sounds, and what was found in each."""
    from burnish.assist.serve import utterances
    from burnish.data.sounds import Sound

    rows, found = [], []
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = folder / row["file_name"]
        rows.append((row["text"], row["intent"]))
        parts = [answered(chain, said) for said in utterances(chain, Sound(path.name, path))]
        found.append(max(parts, key=lambda one: len(one.get("heard", ""))))
    return rows, found


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assistant", nargs="?", default="assistants/home.yaml", type=Path)
    parser.add_argument("--spoken", type=Path)
    given = parser.parse_args(arguments)
    load_torch()
    from burnish.assist.chain import Chain
    from burnish.assist.settings import read_assistant

    chain = Chain(read_assistant(given.assistant))
    result: dict[str, Any] = {}
    for name, rows in (("held_out", held_out()), ("by_hand", written())):
        result[name] = judged(rows, [answered(chain, text) for text, _ in rows])
    if given.spoken:
        rows, found = spoken(chain, given.spoken)
        result["spoken"] = judged(rows, found)
        stages = {stage for one in found for stage in one["seconds"]}
        result["median_seconds"] = {
            stage: statistics.median(one["seconds"][stage] for one in found if stage in one["seconds"])
            for stage in sorted(stages)
        }
        result["slowest_seconds"] = max(one["seconds"]["done"] for one in found)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
