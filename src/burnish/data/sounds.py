"""Sounds as rows have them."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.decoder import RATES, sixteen
from burnish.data.media import Medium, file_of

#: What int16 samples are divided by to lie between -1 and 1.
FULL = 32768
#: A sound that nowhere is louder than this is called silent; by 60 decibels less than the loudest possible.
_SILENT = FULL // 1000
#: Share of samples at the end of the scale from which a sound is called clipped.
_CLIPPED = 0.001
#: What may be wrong with a sound that is learned from all the same; 0 is nothing.
FLAWS = ("", "silent", "clipped")


@dataclass(frozen=True)
class Sound(Medium):
    """A sound; its samples, where it is decoded already: floats from -1 to 1, [samples] or [samples, channels].

    Args:
        rate: samples a second of decoded ones; None: as many as the model hears.
    """

    rate: int | None = None

    def decoded(self, kind: str, rate: int) -> np.ndarray:
        import soxr

        assert isinstance(self.content, np.ndarray)  # asked of such content
        samples = self.content.astype(np.float32)
        samples = samples.mean(1) if samples.ndim == 2 else samples
        return sixteen(soxr.resample(samples, self.rate or rate, rate))


def sound_of(value: Any, where: str, folder: Path) -> Sound | str:
    """Return the sound that a value of a row stands for, or why it stands for none.

    Args:
        value: a path, bytes, `{"bytes": ..., "path": ...}` as `datasets` keeps sounds, samples as floats, or
            `{"array": samples, "sampling_rate": ...}`.
        where: of the row.
        folder: from which a path is taken.
    """
    if isinstance(value, Sound):
        return value
    rate = None
    if isinstance(value, dict) and value.keys() >= {"array", "sampling_rate"}:
        rate = value["sampling_rate"]
        try:
            value = np.asarray(value["array"])
        except ValueError:
            return "has an array whose channels are not equally long"
        if not isinstance(rate, int | float) or not RATES[0] <= rate <= RATES[1]:
            return f"has {rate!r} samples a second, not {RATES[0]:,} to {RATES[1]:,}"
        rate = int(rate)
    found = file_of(value, where, folder, Sound)
    if not isinstance(found, tuple):
        return found
    [value] = found
    if isinstance(value, np.ndarray):
        fits = value.dtype.kind == "f" and value.size and value.ndim in (1, 2) and np.isfinite(value).all()
        return Sound(where, value, rate) if fits else f"has samples of {value.dtype} {value.shape}, not finite floats"
    return f"is {type(value).__name__}, not a sound"


def flaw_of(samples: np.ndarray) -> int:
    """Return what is wrong with samples, as a place in `FLAWS`.

    >>> flaw_of(np.zeros(10, np.int16)), flaw_of(np.full(10, 32767, np.int16)), flaw_of(np.full(10, 9000, np.int16))
    (1, 2, 0)
    """
    loud = np.abs(samples.astype(np.int32))
    if loud.max(initial=0) <= _SILENT:
        return 1
    return 2 if (loud >= FULL - 1).mean() >= _CLIPPED else 0


def wav_of(samples: Sequence[float] | np.ndarray, rate: int) -> bytes:
    """Return samples, from -1 to 1, as the bytes of a WAV file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((np.clip(np.asarray(samples, np.float64), -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()
