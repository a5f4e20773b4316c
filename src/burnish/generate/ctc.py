"""From what a model says of each frame to a text: the best path, or a search among many with the words of some texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from burnish.data.files import open_lines
from burnish.data.spelling import plain
from burnish.task import BrokenRow

#: Tokens of a frame that are less likely than this, in nats, are not followed.
_LEAST = -12.0
#: What a word costs that the texts do not have, in nats, beside those of the rarest.
_UNKNOWN = 10.0
#: Share of a word's probability that comes from how often it stands alone (Jelinek and Mercer 1980).
_ALONE = 0.3


def best_path(scores: np.ndarray, blank: int) -> list[int]:
    """Return the likeliest token of each frame, repeats and blanks left out.

    Args:
        scores: log-probabilities [frames, tokens].

    >>> best_path(np.log(np.array([[0.1, 0.9], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])), 0)
    [1, 1]
    """
    path = scores.argmax(1)
    return path[(path != blank) & np.append(True, path[1:] != path[:-1])].tolist()


def aligned(scores: np.ndarray, ids: Sequence[int], blank: int) -> list[int]:
    """Return the frame at which each token begins, on the likeliest path that gives these tokens.

    Args:
        scores: log-probabilities [frames, tokens], of frames enough for the tokens.

    Source: Graves et al. 2006, section 4.1, with the likeliest path in place of the sum over all.

    >>> aligned(np.log(np.array([[0.1, 0.9], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])), [1, 1], 0)
    [0, 3]
    """
    if not ids:
        return []
    states = np.full(2 * len(ids) + 1, blank)
    states[1::2] = ids
    leaps = np.append([False, False], (states[2:] != blank) & (states[2:] != states[:-2]))  # over the blank between
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, states[:2]]
    came = np.zeros((len(scores), len(states)), np.int8)
    for frame in range(1, len(scores)):
        ways = np.full((3, len(states)), -np.inf)
        ways[0], ways[1, 1:], ways[2, 2:] = best, best[:-1], np.where(leaps[2:], best[:-2], -np.inf)
        came[frame] = ways.argmax(0)
        best = ways.max(0) + scores[frame, states]
    place, begins = len(states) - (1 if best[-1] >= best[-2] else 2), [0] * len(ids)
    for frame in range(len(scores) - 1, -1, -1):
        if place % 2:
            begins[place // 2] = frame
        place -= came[frame, place]
    return begins


@dataclass
class WordModel:
    """How likely a word is after another, by the lines of a text; a list of words is a text with one on each line."""

    alone: Counter[str] = field(default_factory=Counter)
    after: dict[str, Counter[str]] = field(default_factory=dict)

    @staticmethod
    def of(lines: Iterable[str]) -> WordModel:
        """Return the model of some lines, written as `plain` does."""
        made = WordModel()
        for line in lines:
            words = ["", *plain(line).split(), ""]
            made.alone.update(words[1:])
            for before, word in pairwise(words):
                made.after.setdefault(before, Counter())[word] += 1
        return made

    @cached_property
    def usual(self) -> float:
        """What a word costs that stands alone, on average: -log of its probability."""
        total = self.alone.total()
        return sum(count / total * math.log(total / count) for count in self.alone.values()) if total else 0.0

    def cost(self, before: str, word: str) -> float:
        """Return -log of the probability of a word after another, less what words usually cost; "" is an end of a line.

        So a word as good as others costs nothing, and a text is not the better for having fewer words.

        >>> model = WordModel.of(["turn on the light", "turn off the light"])
        >>> round(model.cost("turn", "on"), 2), model.cost("turn", "on") < model.cost("turn", "light")
        (-0.78, True)
        """
        total = self.alone.total() or 1
        if word not in self.alone:
            return math.log(total) + _UNKNOWN - self.usual
        follows = self.after.get(before, Counter())
        share = follows[word] / follows.total() if follows else 0.0
        return -math.log((1 - _ALONE) * share + _ALONE * self.alone[word] / total) - self.usual


@lru_cache(maxsize=4)
def words_of(file: str) -> WordModel:
    """Return the model of the lines of a file."""
    return WordModel.of(line for _, line in open_lines(Path(file)) if not isinstance(line, BrokenRow))


@dataclass(frozen=True)
class _Beam:
    """What is said of a text by the frames so far."""

    ends: float
    """Log-probability of all paths that end in a blank."""
    goes_on: float
    """Log-probability of all paths that end in the last token."""


def beam_search(
    scores: np.ndarray,
    blank: int,
    beams: int,
    spell: Callable[[Sequence[int]], str],
    between: int | None = None,
    words: WordModel | None = None,
    weight: float = 1.0,
) -> list[int]:
    """Return the likeliest tokens, all paths that give them summed, among as many as `beams` at each frame.

    Args:
        scores: log-probabilities [frames, tokens].
        spell: returns the text of tokens.
        between: the token between words.
        words: what words, in their order, are likelier; None: only what is heard counts.
        weight: of the words beside what is heard.

    Source: Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent
    DNNs", algorithm 1.
    """
    found: dict[tuple[int, ...], _Beam] = {(): _Beam(0.0, -math.inf)}
    prices: dict[tuple[int, ...], float] = {(): 0.0}

    def price(prefix: tuple[int, ...], whole: bool = False) -> float:
        """Return what the words cost that are complete."""
        if words is None or (not whole and between is None):
            return 0.0
        if prefix not in prices:
            prices[prefix] = price(prefix[:-1])
            if prefix[-1] == between:
                said = ["", "", *spell(prefix).split()]
                prices[prefix] += words.cost(said[-2], said[-1]) if len(said) > 2 else 0.0
        if not whole:
            return prices[prefix]
        said = ["", *spell(prefix).split()]
        open_word = bool(prefix) and prefix[-1] != between
        last = words.cost(said[-2], said[-1]) if open_word and len(said) > 1 else 0.0
        return prices[prefix] + last + words.cost(said[-1], "")

    def rated(prefix: tuple[int, ...], beam: _Beam, whole: bool = False) -> float:
        return _sum(beam.ends, beam.goes_on) - weight * price(prefix, whole)

    for frame in scores:
        likely = [int(token) for token in np.flatnonzero(frame >= _LEAST)]
        ending: dict[tuple[int, ...], list[float]] = {}

        def add(prefix: tuple[int, ...], ends: float, goes_on: float, into: dict = ending) -> None:
            known = into.setdefault(prefix, [-math.inf, -math.inf])
            known[0], known[1] = _sum(known[0], ends), _sum(known[1], goes_on)

        for prefix, beam in found.items():
            both = _sum(beam.ends, beam.goes_on)
            for token in likely:
                score = float(frame[token])
                if token == blank:
                    add(prefix, both + score, -math.inf)
                elif prefix and token == prefix[-1]:
                    add(prefix, -math.inf, beam.goes_on + score)
                    add((*prefix, token), -math.inf, beam.ends + score)
                else:
                    add((*prefix, token), -math.inf, both + score)
        ordered = sorted(
            ((prefix, _Beam(*ends)) for prefix, ends in ending.items()), key=lambda one: -rated(one[0], one[1])
        )
        found = dict(ordered[:beams])
    return list(max(found, key=lambda prefix: rated(prefix, found[prefix], True)))


def _sum(first: float, second: float) -> float:
    """Return the log of the sum of two probabilities."""
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
