"""How far the words' times of a recogniser are from those of a synthesiser that says when each phone ends.

    python -m benchmarks.word_times [MODEL]

Of the held-out sentences of read-prose, those that are written down without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.speaking import RECOGNISER, ROWS
from burnish.data.rows import Rows, find_parts
from burnish.data.spelling import plain
from burnish.inference import open_model


def said(text: str, durations: Sequence[float]) -> list[tuple[str, float, float]]:
    """Return each word of a text with the seconds at which it begins and ends, a pause after it left out.

    >>> said("Ah, no", [0.2, 0.1, 0.3, 0.0, 0.1, 0.25])
    [('ah', 0.0, 0.3), ('no', 0.6, 0.95)]
    """
    ends = np.cumsum(durations)
    words, place = [], 0
    for word in text.split(" "):
        last = place + len(word.rstrip(".,;:?!-'")) - 1
        if plain(word):
            words.append((plain(word), round(float(ends[place] - durations[place]), 4), round(float(ends[last]), 4)))
        place += len(word) + 1
    return words


def main(model: str = RECOGNISER) -> None:
    """Print how far starts and ends of words are off."""
    recogniser, sentences, off = open_model(model, "automatic-speech-recognition"), 0, []
    columns = {"text": "text", "audio": "audio", "durations": "durations"}
    for row in Rows(find_parts([ROWS], "rows", lambda *_: [], "audio"), columns):
        true = said(row.values["text"], row.values["durations"])
        [answer] = recogniser.predict([{"audio": row.values["audio"]}], {}, 0)
        heard = [(plain(chunk["text"]), chunk["start"], chunk["end"]) for chunk in answer["chunks"]]
        if [word for word, *_ in heard] == [word for word, *_ in true]:
            sentences += 1
            off += [(found[1] - one[1], found[2] - one[2]) for found, one in zip(heard, true, strict=True)]
    print(f"{len(off)} words of {sentences} sentences, seconds")
    for name, column in zip(("starts", "ends"), np.array(off).T, strict=True):
        away = np.abs(column)
        print(
            f"{name}: {column.mean():+.3f} on average, {away.mean():.3f} away from the truth, "
            f"nine of ten at most {np.quantile(away, 0.9):.3f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
