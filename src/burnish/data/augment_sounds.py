"""Sounds varied in training. All of it follows from 64 bits a row (`Task.vary`)."""

from __future__ import annotations

import numpy as np

from burnish.config import SOUNDS, AugmentSettings
from burnish.data.augment import chances

#: Stretches that are silenced, and bands that are removed.
_MASKS = 2
#: Noise is up to so many powers of ten softer than its most: some sounds stay as clean as those that are asked about later.
_QUIETEST = 3


def is_on(settings: AugmentSettings) -> bool:
    """Return whether anything is varied of sounds."""
    return any(getattr(settings, name) for name in SOUNDS)


def varied(settings: AugmentSettings, samples: np.ndarray, rate: int, draw: int) -> np.ndarray:
    """Return samples as training hears them: float32 [about as many samples].

    Masks lie on the samples, not on features, so that they mean the same to models that hear waves and to those that hear
    spectra.

    Args:
        samples: float32 from -1 to 1.
        draw: 64 bits.

    Source: Ko et al. 2015 (speed), section 2; Park et al. 2019 (SpecAugment), section 2.
    """
    if settings.speed:
        import soxr

        samples = soxr.resample(samples, chances(draw, "speed").uniform(1 - settings.speed, 1 + settings.speed), 1.0)
    if settings.noise:
        random = chances(draw, "noise")
        loud = settings.noise * 10 ** random.uniform(-_QUIETEST, 0) * np.sqrt(np.square(samples).mean())
        samples = samples + loud * random.standard_normal(len(samples), np.float32)
    if settings.mask_frequency:
        samples = _without_bands(samples, rate, settings.mask_frequency, chances(draw, "bands"))
    if settings.mask_time:
        samples, random = samples.copy(), chances(draw, "stretches")
        for _ in range(_MASKS):
            size = round(random.uniform(0, settings.mask_time) * len(samples))
            start = int(random.integers(0, len(samples) - size + 1))
            samples[start : start + size] = 0
    if settings.gain:
        samples = samples * 10 ** (chances(draw, "gain").uniform(-settings.gain, settings.gain) / 20)
    return np.clip(samples, -1, 1).astype(np.float32)


def _without_bands(samples: np.ndarray, rate: int, most: float, random: np.random.Generator) -> np.ndarray:
    """Return samples without some bands, drawn on the mel scale. Source of the scale: O'Shaughnessy 1987."""
    spectrum, highest = np.fft.rfft(samples), 2595 * np.log10(1 + rate / 2 / 700)
    for _ in range(_MASKS):
        width = random.uniform(0, most) * highest
        low = random.uniform(0, highest - width)
        edges = 700 * (10 ** (np.array([low, low + width]) / 2595) - 1)
        first, last = np.rint(edges * len(samples) / rate).astype(int)
        spectrum[first:last] = 0
    return np.fft.irfft(spectrum, len(samples))
