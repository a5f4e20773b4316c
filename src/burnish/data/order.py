"""The order of the data: a pure function of (seed, epoch, position), with nothing to save and nothing to replay."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finaliser of each number. Source: Steele, Lea, Flood 2014, Figure 15 (variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order of `size` rows in one epoch: rows sorted by a hash of (seed, epoch, row).

    The hash is written out here, so the order does not depend on the version of any random number generator.
    """
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed], np.uint64) + _GAMMA) + np.array([epoch], np.uint64) * _GAMMA)
        keys = _mix(key + (np.arange(size, dtype=np.uint64) + np.uint64(1)) * _GAMMA)
    return np.argsort(keys, kind="stable")


def rows_of_step(step: int, *, seed: int, batch: int, size: int, total_rows: int) -> list[tuple[int, int]]:
    """Return the rows of step `step` (from 0), each with its epoch: positions `step * batch` up to the next step's.

    A step may reach into the next epoch; only the last step of a run is shorter, when `total_rows` says so.
    """
    positions = range(step * batch, min((step + 1) * batch, total_rows))
    return [
        (int(permutation(seed, position // size, size)[position % size]), position // size) for position in positions
    ]


def draw(seed: int, epoch: int, row: int) -> int:
    """Return 64 bits that depend on (seed, epoch, row) alone, for what a task varies from epoch to epoch."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed], np.uint64) - _GAMMA) + np.array([epoch], np.uint64) * _GAMMA)
        return int(_mix(key + np.array([row], np.uint64) * _GAMMA)[0])
