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

#: Requests to an assistant of a home, written by hand, and what each wants.
REQUESTS = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "home_requests.tsv"
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
    for part, voices in VOICES.items():
        folder, rows = target / part, []
        folder.mkdir(parents=True)
        for place, voice in enumerate(voices):
            said = drawn(COUNTS[part], place) if part == "train" else commanded(part, COUNTS[part], place)
            for number, text in enumerate(said):
                file = folder / f"{voice}-{number:04}.wav"
                speak(flite, library, voice, text, file)
                rows.append({"file_name": file.name, "text": text, "speaker": voice})
        _write_table(folder, rows)
        print(f"{part}: {len(rows):,} commands by {', '.join(voices)}", flush=True)
    (target / "orders.txt").write_text("".join(f"{text}\n" for text in commanded("texts", 2_000, 99)), encoding="utf-8")


def requests(flite: Path, library: Path, target: Path) -> None:
    """Write the requests to a home that were written by hand, each said by one voice after the other in turn."""
    target.mkdir(parents=True)
    voices, rows = [voice for part in VOICES.values() for voice in part], []
    for number, line in enumerate(REQUESTS.read_text(encoding="utf-8").splitlines()):
        intent, text = line.split("\t")
        voice = voices[number % len(voices)]
        file = target / f"{number:03}-{voice}.wav"
        speak(flite, library, voice, text, file)
        rows.append({"file_name": file.name, "text": text, "intent": intent, "speaker": voice})
    _write_table(target, rows)


def speak(flite: Path, library: Path, voice: str, text: str, file: Path) -> None:
    """Let Flite say a text into a file."""
    libraries = {str(found.parent) for found in library.rglob("libflite.so.1")}
    known = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    subprocess.run([str(flite / "usr/bin/flite"), "-voice", voice, "-t", text, "-o", str(file)], env=known, check=True)


def _write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
