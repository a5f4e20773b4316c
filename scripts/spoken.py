"""Commands to a home, spoken by the voices of Flite, a small synthesiser; a voice and all orders of words are held out.

What is trained on is drawn word by word: a model that hears whole commands learns them by heart, and then hears them in
commands of other word orders too (docs/log.md).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Who speaks in which part; who is heard in the test is never heard before.
VOICES = {"train": ("awb", "kal", "kal16", "slt"), "test": ("rms",)}
#: Sentences of each voice.
COUNTS = {"train": 400, "test": 200}
#: Words of a sentence to train on.
_FEWEST, _MOST = 2, 8
#: Orders of words: of texts that say which words stand beside which, and of the test.
ORDERS = {
    "texts": (
        "turn {switch} the {room} {device}",
        "please turn {switch} the {device}",
        "turn the {device} in the {room} {switch}",
        "set the {room} {device} to {number}",
        "set the {device} to {number} please",
        "dim the {device} in the {room}",
        "is the {room} {device} {switch}",
        "{number} and {number} please",
    ),
    "test": (
        "please set the {device} in the {room} to {number}",
        "in the {room} turn {switch} the {device}",
        "dim the {room} {device} please",
        "is the {device} {switch} in the {room}",
    ),
}
WORDS = {
    "switch": ("on", "off"),
    "room": ("kitchen", "bedroom", "garage", "hall", "office", "garden"),
    "device": ("light", "lamp", "fan", "heater", "radio", "blinds"),
    "number": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
}


#: All words, of slots and between them.
VOCABULARY = sorted(
    {
        word
        for texts in (*ORDERS.values(), *WORDS.values())
        for text in texts
        for word in text.split()
        if "{" not in word
    }
)


def drawn(count: int, seed: int) -> Iterator[str]:
    """Yield some rows of words, each drawn by itself, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        yield " ".join(draw.choices(VOCABULARY, k=draw.randint(_FEWEST, _MOST)))


def commanded(part: str, count: int, seed: int) -> Iterator[str]:
    """Yield some commands in the word orders of a part, the same for the same seed."""
    draw = random.Random(seed)
    for number in range(count):
        text = ORDERS[part][number % len(ORDERS[part])]
        for slot, words in WORDS.items():
            while f"{{{slot}}}" in text:
                text = text.replace(f"{{{slot}}}", draw.choice(words), 1)
        yield text


def program(archive: Path, target: Path) -> None:
    """Unpack a package of Flite, its program or its library with the voices."""
    subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


def commands(flite: Path, library: Path, target: Path) -> None:
    """Write the commands of each part, all voices in one folder, with a table of what is said and who says it."""
    [libraries] = {str(file.parent) for file in library.rglob("libflite.so.1")}
    known = {**os.environ, "LD_LIBRARY_PATH": libraries}
    for part, voices in VOICES.items():
        folder, rows = target / part, []
        folder.mkdir(parents=True)
        for place, voice in enumerate(voices):
            said = drawn(COUNTS[part], place) if part == "train" else commanded(part, COUNTS[part], place)
            for number, text in enumerate(said):
                file = folder / f"{voice}-{number:04}.wav"
                command = [str(flite / "usr/bin/flite"), "-voice", voice, "-t", text, "-o", str(file)]
                subprocess.run(command, env=known, check=True)
                rows.append({"file_name": file.name, "text": text, "speaker": voice})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
        print(f"{part}: {len(rows):,} commands by {', '.join(voices)}", flush=True)
    (target / "orders.txt").write_text("".join(f"{text}\n" for text in commanded("texts", 2_000, 99)), encoding="utf-8")
