"""Where in a sound somebody speaks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

#: Seconds of sound kept from before speech is noticed, of speech on end that begins an utterance, and of the longest.
_BEFORE, _FIRST, _LONGEST = 0.3, 0.08, 30.0
#: Seconds of a frame whose loudness is measured.
_FRAME = 0.02
#: Decibels over the background from which a frame is loud; the background is never taken to be quieter than this.
_ABOVE, _QUIETEST = 10.0, -60.0
#: Seconds in which the quietest frame says what the background is.
_MEMORY = 3.0


class Judge(Protocol):
    """Says of each frame of a stream, one after the other, whether somebody speaks in it."""

    size: int
    """Samples of a frame."""

    def __call__(self, frame: np.ndarray) -> bool: ...


class Loudness:
    """Takes what is much louder than the background for speech.

    The background is the quietest moment of the last seconds, as in Martin 2001 (minimum statistics), without its smoothing.
    """

    def __init__(self, rate: int):
        self.size = max(1, int(rate * _FRAME))
        self._levels: deque[float] = deque(maxlen=int(_MEMORY / _FRAME))

    def __call__(self, frame: np.ndarray) -> bool:
        level = 10 * float(np.log10(np.square(frame).mean() + 1e-12))
        self._levels.append(level)
        return level > max(_QUIETEST, min(self._levels)) + _ABOVE


class Ear:
    """Cuts a stream of samples into utterances.

    Args:
        rate: samples a second.
        pause: seconds without speech that end an utterance.
        judge: says where speech is. Default: where it is loud.

    >>> ear = Ear(1_000, 0.2)
    >>> quiet, loud = np.zeros(500, np.float32), np.tile(np.float32([0.5, -0.5]), 300)
    >>> [len(said) for said in ear.hear(np.concatenate([quiet, loud, quiet, loud, quiet]))]
    [1100, 1100]
    """

    def __init__(self, rate: int, pause: float, judge: Judge | None = None):
        self._judge = judge or Loudness(rate)
        self._size = self._judge.size
        frames = lambda seconds: max(1, round(seconds * rate / self._size))  # noqa: E731
        self._first, self._pause, self._longest = frames(_FIRST), frames(pause), frames(_LONGEST)
        self._rest = np.zeros(0, np.float32)
        self._before: deque[np.ndarray] = deque(maxlen=frames(_BEFORE) + self._first)
        self._said: list[np.ndarray] = []
        self._speech = self._quiet = 0

    def utterances(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield each utterance of a stream that ends, as soon as it is whole; where there is none, one of no samples."""
        nothing = True
        for said in itertools.chain(itertools.chain.from_iterable(map(self.hear, blocks)), self.end()):
            nothing = False
            yield said
        if nothing:
            yield np.zeros(0, np.float32)

    def hear(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Take more samples, float32 from -1 to 1, and yield each utterance that ends in them."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._size * self._size
        self._rest = samples[whole:]
        for frame in samples[:whole].reshape(-1, self._size):
            yield from self._frame(frame)

    def end(self) -> Iterator[np.ndarray]:
        """Yield the utterance under way where the stream ends, if there is one."""
        if self._said:
            yield self._whole()

    def _frame(self, frame: np.ndarray) -> Iterator[np.ndarray]:
        speaks = self._judge(frame)
        if not self._said:
            self._before.append(frame)
            self._speech = self._speech + 1 if speaks else 0
            if self._speech >= self._first:
                self._said, self._quiet = list(self._before), 0
                self._before.clear()
            return
        self._said.append(frame)
        self._quiet = 0 if speaks else self._quiet + 1
        if self._quiet >= self._pause or len(self._said) >= self._longest:
            yield self._whole()

    def _whole(self) -> np.ndarray:
        said, self._said, self._speech = np.concatenate(self._said), [], 0
        return said
