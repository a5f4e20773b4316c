"""Where in a sound somebody speaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

#: Seconds of a frame, of sound kept from before speech is noticed, and of the longest utterance.
_FRAME, _BEFORE, _LONGEST = 0.02, 0.3, 30.0
#: Decibels over the background from which a frame is loud; the background is never taken to be quieter than this.
_ABOVE, _QUIETEST = 10.0, -60.0
#: Seconds in which the quietest frame says what the background is.
_MEMORY = 3.0
#: Loud frames on end that begin an utterance.
_FIRST = 4


class Ear:
    """Cuts a stream of samples into utterances, by how much louder than the background they are.

    The background is the quietest moment of the last seconds, as in Martin 2001 (minimum statistics), without its smoothing.

    Args:
        rate: samples a second.
        pause: seconds of quiet that end an utterance.

    >>> ear = Ear(1_000, 0.2)
    >>> quiet, loud = np.zeros(500, np.float32), np.tile(np.float32([0.5, -0.5]), 300)
    >>> [len(said) for said in ear.hear(np.concatenate([quiet, loud, quiet, loud, quiet]))]
    [1100, 1100]
    """

    def __init__(self, rate: int, pause: float):
        self.rate = rate
        self._size = max(1, int(rate * _FRAME))
        self._pause = max(1, round(pause / _FRAME))
        self._levels: deque[float] = deque(maxlen=int(_MEMORY / _FRAME))
        self._rest = np.zeros(0, np.float32)
        self._before: deque[np.ndarray] = deque(maxlen=int(_BEFORE / _FRAME) + _FIRST)
        self._said: list[np.ndarray] = []
        self._loud = self._quiet = 0

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
        level = 10 * float(np.log10(np.square(frame).mean() + 1e-12))
        self._levels.append(level)
        is_loud = level > max(_QUIETEST, min(self._levels)) + _ABOVE
        if not self._said:
            self._before.append(frame)
            self._loud = self._loud + 1 if is_loud else 0
            if self._loud >= _FIRST:
                self._said, self._quiet = list(self._before), 0
                self._before.clear()
            return
        self._said.append(frame)
        self._quiet = 0 if is_loud else self._quiet + 1
        if self._quiet >= self._pause or len(self._said) * _FRAME >= _LONGEST:
            yield self._whole()

    def _whole(self) -> np.ndarray:
        said, self._said, self._loud = np.concatenate(self._said), [], 0
        return said
