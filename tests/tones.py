"""Small sounds: tones that follow from letters and labels, for tests of hearing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 8_000
#: How each letter sounds, in hertz.
HERTZ = {"a": 300.0, "b": 700.0, "c": 1_500.0, "d": 2_800.0, " ": 0.0}


def sung(text: str, random: np.random.Generator, seconds: float = 0.12) -> tuple[np.ndarray, list[float]]:
    """Return a text as tones with some noise, a tone a letter and nothing for a blank, float32, and the seconds of each."""
    pieces = []
    for letter in text:
        time = np.arange(int(RATE * seconds * random.uniform(0.8, 1.2))) / RATE
        pieces.append(0.3 * np.sin(2 * np.pi * HERTZ[letter] * time))
    sound = np.concatenate(pieces)
    noisy = (sound + 0.005 * random.standard_normal(len(sound))).astype(np.float32)
    return noisy, [len(piece) / RATE for piece in pieces]


def folder_of_songs(folder: Path, count: int, seed: int = 0) -> Path:
    """Write sounds of one or two words of the letters a to d with a `metadata.jsonl`, and return their folder."""
    random, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        words = ["".join(random.choice(list("abcd"), int(random.integers(1, 4)))) for _ in range(number % 2 + 1)]
        sound, durations = sung(" ".join(words), random)
        soundfile.write(folder / f"{number:03}.wav", sound, RATE)
        line = {"file_name": f"{number:03}.wav", "text": " ".join(words), "singer": f"s{number % 16}"}
        lines.append({**line, "durations": durations})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def folder_of_tones(folder: Path, count: int, seed: int = 0) -> Path:
    """Write a folder of sounds for each of two labels, low and high, and return the folder of both."""
    random = np.random.default_rng(seed)
    for number in range(count):
        label = ("low", "high")[number % 2]
        text = "".join(random.choice(list("ab" if label == "low" else "cd"), int(random.integers(2, 5))))
        path = folder / label / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sung(text, random)[0], RATE)
    return folder
