"""What a run of recipes/ctc-commands.yaml hears of voices and word orders that are held out, by decoder.

python -m benchmarks.spoken_commands RUN
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jiwer

from burnish.data.rows import Rows, find_parts
from burnish.data.spelling import plain
from burnish.inference import open_model

FOLDER = Path(".assets/spoken-commands")
#: By who speaks.
PARTS = {"Flite's fifth voice": "test-flite", "ten voices of eSpeak NG": "test-espeak"}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "16 beams": {"beams": 16},
    "16 beams and the list of words": {"beams": 16, "words": str(FOLDER / "words.txt")},
    "16 beams and commands in other orders": {"beams": 16, "words": str(FOLDER / "orders.txt")},
}


def main(run: str) -> None:
    """Print word error rates, a line for each decoder."""
    recogniser = open_model(run)
    columns = {"text": "text", "audio": "audio"}
    rows = {
        who: list(Rows(find_parts([str(FOLDER / part)], "rows", lambda *_: [], "audio"), columns))
        for who, part in PARTS.items()
    }
    print(" | ".join(["", *rows]))
    for way, given in WAYS.items():
        rates = []
        for some in rows.values():
            heard = recogniser.predict([{"audio": row.values["audio"]} for row in some], given, 0)
            texts = [plain(row.values["text"]) for row in some]
            rates.append(jiwer.wer(texts, [plain(answer["text"]) for answer in heard]))
        print(" | ".join([way, *(f"{rate:.3f}" for rate in rates)]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    main(sys.argv[1])
