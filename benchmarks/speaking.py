"""How well a run of text-to-speech is understood: Whisper tiny.en writes down held-out sentences it says.

    python -m benchmarks.speaking RUN [ROWS]

Beside it stand two bounds: the sounds of the rows themselves, and samples found for their true spectra.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from burnish.data.rows import Rows, find_parts
from burnish.data.sounds import FULL
from burnish.data.spelling import plain
from burnish.inference import Opened, open_model

ROWS = ".assets/read-prose/test"
RECOGNISER = ".assets/whisper-tiny-en"


def understood(texts: list[str], sounds: list[np.ndarray], rate: int, recogniser: Opened) -> list[str]:
    """Return what the recogniser writes of each sound, printing where it is not its text."""
    heard = []
    for text, samples in zip(texts, sounds, strict=True):
        [answer] = recogniser.predict([{"audio": {"array": samples, "sampling_rate": rate}}], {}, 0)
        heard.append(plain(answer["text"]))
        if heard[-1] != plain(text):
            print(f"  {plain(text)}\n    {heard[-1]}", flush=True)
    return heard


def main(run: str, rows: str = ROWS) -> None:
    """Print the word error rate of each way to say the rows' texts."""
    import torch

    speaker, recogniser = open_model(run), open_model(RECOGNISER, "automatic-speech-recognition")
    task: Any = speaker.task
    found = list(Rows(find_parts([rows], "rows", lambda *_: [], "audio"), {"text": "text", "audio": "audio"}))
    texts = [row.values["text"] for row in found]
    with task.decoders(1) as decoders:
        true = [decoders.decode(row.values["audio"], "sound") for row in found]
    ways: dict[str, Callable[[int], np.ndarray]] = {
        "the rows' own sounds": lambda row: true[row].astype(np.float32) / FULL,
        "samples for their true spectra": lambda row: task.samples_of(torch.from_numpy(task.mels(true[row])), 0),
        "the run": lambda row: np.array(speaker.predict([texts[row]], {}, 0)[0]["samples"], np.float32),
    }
    for name, way in ways.items():
        sounds = [way(row) for row in range(len(texts))]
        wer = jiwer.wer([plain(text) for text in texts], understood(texts, sounds, task.rate, recogniser))
        seconds = sum(map(len, sounds)) / task.rate
        print(f"{name}: WER {wer:.1%} of {len(texts)} texts, {seconds:.0f} seconds", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not Path(sys.argv[1]).is_dir():
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
