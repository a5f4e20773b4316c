"""How well an assistant cuts out what is said in noise: by loudness, and by a network that knows voices.

    python -m benchmarks.hearing [--sounds .assets/spoken-requests] [--voice .assets/silero-vad.safetensors] [--count 40]

Each request stands between two seconds without speech, in a noise made here that has a share of its power. It counts as found
if exactly one utterance comes out, and that as long as the request and the pause after it, within 0.8 seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

RATE, PAUSE, SLACK = 16_000, 0.5, 0.8
#: Power of the speech over that of the noise, in decibels.
RATIOS = (20, 10, 0)


def hiss(count: int, random: np.random.Generator) -> np.ndarray:
    """Return white noise."""
    return random.standard_normal(count)


def hum(count: int, random: np.random.Generator) -> np.ndarray:
    """Return a tone of 120 Hz with some hiss."""
    return np.sin(np.arange(count) * 2 * np.pi * 120 / RATE) + 0.3 * hiss(count, random)


def gusts(count: int, random: np.random.Generator) -> np.ndarray:
    """Return hiss that swells and fades every two and a half seconds."""
    swell = np.sin(np.arange(count) * 2 * np.pi * 0.4 / RATE + random.uniform(0, 2 * np.pi)).clip(0) ** 2
    return hiss(count, random) * (swell + 0.01)


def knocks(count: int, random: np.random.Generator) -> np.ndarray:
    """Return two knocks a second, anywhere."""
    sound = 0.001 * hiss(count, random)
    for start in random.integers(0, count - 2_000, 2 * count // RATE):
        sound[start : start + 2_000] += hiss(2_000, random) * np.exp(-np.arange(2_000) / 400)
    return sound


def found(said: np.ndarray, noise: np.ndarray, ratio: float, ear) -> bool:
    """Return whether an ear cuts a request out of a noise of its length and four seconds more."""
    scale = np.sqrt(np.square(said).mean() / np.square(noise).mean() / 10 ** (ratio / 10))
    sound = (np.pad(said, 2 * RATE) + scale * noise).astype(np.float32)
    cut = [*ear.hear(sound), *ear.end()]
    return len(cut) == 1 and abs(len(cut[0]) / RATE - (len(said) / RATE + PAUSE)) < SLACK


def main() -> None:
    """Print one JSON line for each noise and ratio."""
    import soundfile
    import soxr

    from burnish.assist.ear import Ear
    from burnish.assist.voice import Voice, load_voice

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, default=Path(".assets/spoken-requests"))
    parser.add_argument("--voice", default=".assets/silero-vad.safetensors")
    parser.add_argument("--count", type=int, default=40)
    given = parser.parse_args()
    net, requests = load_voice(given.voice), []
    for file in sorted(given.sounds.glob("*.wav"))[: given.count]:
        samples, rate = soundfile.read(file, dtype="float32")
        requests.append(soxr.resample(samples, rate, RATE))
    for make in (hiss, hum, gusts, knocks):
        for ratio in RATIOS:
            random = np.random.default_rng(0)
            noises = [make(len(said) + 4 * RATE, random) for said in requests]
            pairs = list(zip(requests, noises, strict=True))
            loud = sum(found(said, noise, ratio, Ear(RATE, PAUSE)) for said, noise in pairs)
            voice = sum(found(said, noise, ratio, Ear(RATE, PAUSE, Voice(net))) for said, noise in pairs)
            print(
                json.dumps({"noise": make.__name__, "decibels": ratio, "of": len(pairs), "loud": loud, "voice": voice})
            )


if __name__ == "__main__":
    main()
