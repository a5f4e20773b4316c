"""Commands to a home, spoken by many voices of two small synthesisers, Flite and eSpeak NG; voices and orders are held out.

What is trained on is drawn, word by word or a few words of commands at a time: a model that hears whole commands learns them by
heart, and then hears them in commands of other word orders too; one that hears words alone does not know how they run together
(docs/log.md).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Requests to an assistant of a home, written by hand, and what each wants.
REQUESTS = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "home_requests.tsv"
#: Voices of Flite, which are made of recordings of a person; in training their pitch and pace vary.
FLITE = {"train": ("awb", "kal", "kal16", "slt"), "validation": (), "test": ("rms",)}
#: Speakers of eSpeak NG, which computes their sound. Those that are held out are unlike the others: no other is made of them.
ESPEAK = {
    "train": (
        "Alex", "Alicia", "Andrea", "Annie", "Denis", "Diogo", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario",
        "Michael", "Mike", "Mr serious", "Nguyen", "Reed", "RicishayMax", "Storm", "Tweaky", "adam", "anika", "announcer",
        "antonio", "aunty", "benjamin", "caleb", "david", "ed", "f1", "f3", "f5", "grandma", "gustave", "ian", "iven",
        "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt4", "klatt5", "klatt6", "m1", "m2", "m4",
        "m5", "m7", "m8", "marcelo", "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert",
        "sandro", "shelby", "victor",
    ),
    "validation": ("Gene", "boris", "f4", "linda", "m6", "travis"),
    "test": ("Andy", "belinda", "edward", "f2", "grandpa", "m3", "max", "michel", "steph", "zac"),
}  # fmt: skip
#: English as it is spoken in places; each row of eSpeak NG's is in one of them.
ACCENTS = (
    "en-us", "en-us-nyc", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip
#: Sentences of each voice.
FLITE_COUNTS = {"train": 1_100, "validation": 0, "test": 200}
ESPEAK_COUNTS = {"train": 44, "validation": 20, "test": 20}
#: How much slower a voice of Flite speaks, and how much higher (a factor), from and to; those of eSpeak NG: words a minute,
#: pitch and its range.
STRETCH, SHIFT = (0.75, 1.5), (0.76, 1.32)
PACES, PITCHES, RANGES = (100, 220), (25, 75), (20, 80)
#: Of speakers that are held out, whose pitch is their own.
PACES_HELD_OUT, MIDDLE = (140, 190), 50
#: Words of a sentence to train on.
_FEWEST, _MOST = 2, 8
#: Most pieces of commands in a sentence to train on.
_PIECES = 3
#: Orders of words: of texts that say which words stand beside which, and those that are held out.
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
    "validation": (
        "turn {switch} the {device} in the {room} please",
        "please dim the {room} {device}",
        "please set the {room} {device} to {number}",
        "the {device} in the {room} is {switch}",
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


def _shape(order: str) -> str:
    """Return a regular expression of the commands in an order."""
    for slot, words in WORDS.items():
        order = order.replace(f"{{{slot}}}", f"(?:{'|'.join(words)})")
    return rf"\b{order}\b"


#: Commands in orders of words that are held out.
_HELD_OUT = re.compile("|".join(_shape(order) for part in ("validation", "test") for order in ORDERS[part]))


def drawn(count: int, seed: int) -> Iterator[str]:
    """Yield some rows of words, the same for the same seed, without a command in an order that is held out.

    Every other row has words drawn one by one, the rest pieces of commands in the orders of the texts.
    """
    draw, made = random.Random(seed), 0
    while made < count:
        if made % 2:
            pieces = [_piece(draw) for _ in range(draw.randint(1, _PIECES))]
            text = " ".join(word for piece in pieces for word in piece)
        else:
            text = " ".join(draw.choices(VOCABULARY, k=draw.randint(_FEWEST, _MOST)))
        if not _HELD_OUT.search(text):
            made += 1
            yield text


def commanded(part: str, count: int, seed: int) -> Iterator[str]:
    """Yield some commands in the word orders of a part, the same for the same seed."""
    draw = random.Random(seed)
    for number in range(count):
        yield _filled(ORDERS[part][number % len(ORDERS[part])], draw)


def _filled(order: str, draw: random.Random) -> str:
    """Return a command in an order, its slots filled."""
    for slot, words in WORDS.items():
        while f"{{{slot}}}" in order:
            order = order.replace(f"{{{slot}}}", draw.choice(words), 1)
    return order


def _piece(draw: random.Random) -> list[str]:
    """Return words of a command in an order of the texts that follow one another, two or more but not all."""
    words = _filled(draw.choice(ORDERS["texts"]), draw).split()
    size = draw.randint(2, len(words) - 1)
    start = draw.randint(0, len(words) - size)
    return words[start : start + size]


def program(archive: Path, target: Path) -> None:
    """Unpack a package of Flite, its program or its library with the voices."""
    subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


def package(archive: Path, target: Path) -> None:
    """Unpack a wheel, eSpeak NG's library with its voices."""
    shutil.unpack_archive(archive, target, "zip")


def commands(flite: Path, library: Path, espeak: Path, target: Path) -> None:
    """Write what is said in each part and who says it: `train`, `validation`, and `test` for each synthesiser alone."""
    for part, voices in FLITE.items():
        folder = target / ("test-flite" if part == "test" else part)
        draw, rows = random.Random(part), []
        folder.mkdir(parents=True)
        for place, voice in enumerate(voices):
            for number, text in enumerate(_texts(part, FLITE_COUNTS[part], place)):
                file = folder / f"{voice}-{number:04}.wav"
                own = part == "test"
                changed = () if own else (draw.uniform(*STRETCH), draw.uniform(*SHIFT))
                speak(flite, library, voice, text, file, *changed)
                rows.append({"file_name": file.name, "text": text, "speaker": voice})
        if part == "test":
            _write_table(folder, rows)
            folder, rows = target / "test-espeak", []
            folder.mkdir()
        asked = list(jobs(part, folder, draw))
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("espeak.py")), str(espeak)],
            input="".join(json.dumps(job) + "\n" for job in asked),
            text=True,
            check=True,
        )
        rows += [
            {"file_name": Path(job["file"]).name, "text": job["text"], "speaker": job["voice"].split("+")[1]}
            for job in asked
        ]
        _write_table(folder, rows)
        print(f"{part}: {len(voices)} voices of Flite, {len(ESPEAK[part])} of eSpeak NG", flush=True)
    (target / "words.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    (target / "orders.txt").write_text("".join(f"{text}\n" for text in commanded("texts", 2_000, 99)), encoding="utf-8")


def _texts(part: str, count: int, seed: int) -> Iterator[str]:
    """Yield what a voice says: commands in orders that are held out, or what is trained on."""
    return drawn(count, seed) if part == "train" else commanded(part, count, seed)


def jobs(part: str, folder: Path, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yield what eSpeak NG shall say in a part."""
    for place, speaker in enumerate(ESPEAK[part]):
        first = 1_000 * (1 + [*ESPEAK].index(part)) + place
        for number, text in enumerate(_texts(part, ESPEAK_COUNTS[part], first)):
            heard = {"voice": f"{draw.choice(ACCENTS)}+{speaker}", "text": text}
            heard["file"] = str(folder / f"espeak-{speaker.replace(' ', '-')}-{number:04}.wav")
            if part == "train":
                yield heard | {
                    "rate": draw.randint(*PACES),
                    "pitch": draw.randint(*PITCHES),
                    "range": draw.randint(*RANGES),
                }
            else:
                yield heard | {"rate": draw.randint(*PACES_HELD_OUT), "pitch": MIDDLE, "range": MIDDLE}


def requests(flite: Path, library: Path, target: Path) -> None:
    """Write the requests to a home that were written by hand, each said by one voice after the other in turn."""
    target.mkdir(parents=True)
    voices, rows = [voice for part in FLITE.values() for voice in part], []
    for number, line in enumerate(REQUESTS.read_text(encoding="utf-8").splitlines()):
        intent, text = line.split("\t")
        voice = voices[number % len(voices)]
        file = target / f"{number:03}-{voice}.wav"
        speak(flite, library, voice, text, file)
        rows.append({"file_name": file.name, "text": text, "intent": intent, "speaker": voice})
    _write_table(target, rows)


def speak(
    flite: Path, library: Path, voice: str, text: str, file: Path, stretch: float = 1.0, shift: float = 1.0
) -> None:
    """Let Flite say a text into a file, that many times as slowly and as high."""
    libraries = {str(found.parent) for found in library.rglob("libflite.so.1")}
    known = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    set_to = ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"f0_shift={shift:.3f}"]
    command = [str(flite / "usr/bin/flite"), "-voice", voice, *(set_to if (stretch, shift) != (1.0, 1.0) else [])]
    subprocess.run([*command, "-t", text, "-o", str(file)], env=known, check=True)


def _write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
