"""Sentences read by a voice of Flite, with the seconds that each character takes.

The synthesiser says when each phone ends. Which letters of a word stand for which of its phones is found over all words
at once: the division that is likeliest, by how often each letter stands for what in the division before.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import re
import wave
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOICE = "slt"
#: Sentences to learn from, and those that are held out.
COUNTS = {"train": 900, "test": 50}
_SENTENCE = re.compile(r"[A-Z][A-Za-z',? -]{8,118}[.?!]")
_VOWELS = "aeiouy"
#: Most phones that a letter stands for.
_MOST = 2
#: How often the letters are divided anew.
_ROUNDS = 5
_PAUSE = "pau"


@dataclass
class Word:
    """A word as the synthesiser says it: its letters, its phones, the seconds of each, and of the pause after it."""

    letters: str
    phones: list[str]
    seconds: list[float]
    pause: float = 0.0


class Flite:
    """The synthesiser's library.

    Args:
        library: the unpacked package.
    """

    def __init__(self, library: Path, voice: str):
        [main] = library.rglob("libflite.so.1")
        self._flite = ctypes.CDLL(str(main), ctypes.RTLD_GLOBAL)  # the others look for what is in it
        for name in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
            ctypes.CDLL(str(main.with_name(name)), ctypes.RTLD_GLOBAL)
        for name in ("relation_head", "item_next", "item_as", "item_daughter", "utt_relation", "flite_synth_text"):
            getattr(self._flite, name).restype = ctypes.c_void_p
        self._flite.item_feat_string.restype = ctypes.c_char_p
        self._flite.item_feat_float.restype = ctypes.c_float
        self._flite.utt_wave.restype = ctypes.POINTER(_Wave)
        self._flite.flite_init()
        register = getattr(
            ctypes.CDLL(str(main.with_name(f"libflite_cmu_us_{voice}.so.1"))), f"register_cmu_us_{voice}"
        )
        register.restype = ctypes.c_void_p
        self._voice = ctypes.c_void_p(register(None))

    def read(self, text: str) -> tuple[np.ndarray, int, list[Word]]:
        """Return the samples of a text without the silence before it, int16, their rate, and its words."""
        flite = self._flite
        spoken = ctypes.c_void_p(flite.flite_synth_text(text.encode(), self._voice))
        segments = [(self._name(one), flite.item_feat_float(one, b"end")) for one in self._items(spoken, b"Segment")]
        ends = [0.0, *(end for _, end in segments)]
        timed = [(name, end - start) for (name, end), start in zip(segments, ends, strict=False)]
        silence, words, place = 0.0, [], 0
        for item in self._items(spoken, b"Word"):
            word = Word(re.sub("[^a-z]", "", self._name(item)), [], [])
            while len(word.phones) < self._phones(item):
                name, seconds = timed[place]
                place += 1
                if name != _PAUSE:
                    word.phones.append(name)
                    word.seconds.append(seconds)
                elif words:
                    words[-1].pause += seconds
                else:
                    silence += seconds
            words.append(word)
        heard = flite.utt_wave(spoken).contents
        rate = heard.sample_rate
        samples = np.ctypeslib.as_array(heard.samples, (heard.num_samples,))[round(silence * rate) :].copy()
        flite.delete_utterance(spoken)
        rest = len(samples) / rate - sum(sum(word.seconds) + word.pause for word in words)
        words[-1].pause = max(0.0, rest)
        return samples, rate, words

    def _phones(self, word: ctypes.c_void_p) -> int:
        """Return of how many phones a word is."""
        flite = self._flite
        syllables = self._after(flite.item_daughter(ctypes.c_void_p(flite.item_as(word, b"SylStructure"))))
        return sum(1 for syllable in syllables for _ in self._after(flite.item_daughter(syllable)))

    def _items(self, spoken: ctypes.c_void_p, relation: bytes) -> Iterator[ctypes.c_void_p]:
        found = ctypes.c_void_p(self._flite.utt_relation(spoken, relation))
        yield from self._after(self._flite.relation_head(found))

    def _after(self, item: int | None) -> Iterator[ctypes.c_void_p]:
        while item:
            yield ctypes.c_void_p(item)
            item = self._flite.item_next(ctypes.c_void_p(item))

    def _name(self, item: ctypes.c_void_p) -> str:
        return self._flite.item_feat_string(item, b"name").decode()


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


def divided(word: Word, likely: dict[tuple[str, tuple[str, ...]], float]) -> list[int] | None:
    """Return how many phones each letter of a word stands for, in the likeliest division; None where there is none.

    Args:
        likely: log-probability of some phones for a letter; of others it is low, and lowest where a vowel meets a consonant.
    """
    letters, phones = word.letters, word.phones
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for letter in letters:
        following: dict[int, tuple[float, list[int]]] = {}
        for place, (score, counts) in best.items():
            for count in range(min(_MOST, len(phones) - place) + 1):
                some = tuple(phones[place : place + count])
                unlike = any((phone[0] in _VOWELS) != (letter in _VOWELS) for phone in some)
                found = score + likely.get((letter, some), -6.0 - 3.0 * abs(count - 1) - 3.0 * unlike)
                if place + count not in following or found > following[place + count][0]:
                    following[place + count] = found, [*counts, count]
        best = following
    return best[len(phones)][1] if len(phones) in best else None


def chances(words: list[Word]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return how likely each letter stands for some phones (log), from words alone."""
    likely: dict[tuple[str, tuple[str, ...]], float] = {}
    for _ in range(_ROUNDS):
        counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for word in words:
            place = 0
            for letter, count in zip(word.letters, divided(word, likely) or (), strict=False):
                counts[letter, tuple(word.phones[place : place + count])] += 1
                place += count
        totals: Counter[str] = Counter()
        for (letter, _), count in counts.items():
            totals[letter] += count
        likely = {key: math.log(count / totals[key[0]]) for key, count in counts.items()}
    return likely


def durations(text: str, words: list[Word], likely: dict[tuple[str, tuple[str, ...]], float]) -> list[float] | None:
    """Return the seconds of each character of a text; None where the words are not those that are written.

    A pause belongs to the first character after its word.
    """
    places = [place for place, letter in enumerate(text) if letter.isalpha()]
    if "".join(text[place] for place in places).lower() != "".join(word.letters for word in words):
        return None
    seconds, start = [0.0] * len(text), 0
    for word in words:
        counts, phone = divided(word, likely), 0
        if counts is None:
            return None
        own = places[start : start + len(word.letters)]
        for place, count in zip(own, counts, strict=True):
            seconds[place] = sum(word.seconds[phone : phone + count])
            phone += count
        start += len(word.letters)
        if word.pause:
            after = own[-1] + 1
            if after == len(text) or text[after].isalpha():
                return None
            seconds[after] += word.pause
    return [round(one, 4) for one in seconds]


def sentences(prose: Path) -> list[str]:
    """Return the sentences that are written in letters alone, each once, in an order by their sha256."""
    text = prose.read_text(encoding="utf-8").replace("\u2019", "'")
    found = {" ".join(one.split()) for one in re.split(r"(?<=[.?!])\s+", text)}
    kept = [one for one in found if _SENTENCE.fullmatch(one) and not re.search(r"[A-Z]{2}|--| [,'-]", one)]
    return sorted(kept, key=lambda one: hashlib.sha256(one.encode()).digest())


def read_prose(library: Path, prose: Path, target: Path) -> None:
    """Write sentences of prose as sounds, to train and to test with, and a table with the seconds of each character."""
    flite, read = Flite(library, VOICE), []
    wanted = sum(COUNTS.values())
    for text in sentences(prose):
        samples, rate, words = flite.read(text)
        letters = "".join(letter for letter in text.lower() if letter.isalpha())
        if all(word.letters and word.phones for word in words) and letters == "".join(word.letters for word in words):
            read.append((text, samples, rate, words))
        if len(read) == wanted + wanted // 10:
            break
    likely = chances([word for *_, words in read for word in words])
    rows = [
        (text, samples, rate, found) for text, samples, rate, words in read if (found := durations(text, words, likely))
    ]
    start = 0
    for side in reversed(COUNTS):  # the test first, so that it stays when there is more to learn from
        some = rows[start : start + COUNTS[side]]
        start += COUNTS[side]
        folder, lines = target / side, []
        folder.mkdir(parents=True)
        for number, (text, samples, rate, seconds) in enumerate(some):
            file = folder / f"{number:04}.wav"
            with wave.open(str(file), "wb") as sound:
                sound.setparams((1, 2, rate, len(samples), "NONE", ""))
                sound.writeframes(samples.astype("<i2").tobytes())
            lines.append(json.dumps({"file_name": file.name, "text": text, "durations": seconds}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        minutes = sum(len(samples) / rate for _, samples, rate, _ in some) / 60
        print(f"{side}: {len(some):,} sentences, {minutes:.0f} minutes", flush=True)
