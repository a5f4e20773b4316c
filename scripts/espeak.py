"""eSpeak NG says texts into WAV files, in a process of its own: its library is under the GPL, and is no part of burnish.

    python scripts/espeak.py PACKAGE < JOBS

PACKAGE is the unpacked package espeakng-loader. JOBS are lines of JSON: `voice` (a language, `+`, a speaker), `text`, `file`,
and `rate` (words a minute), `pitch` and `range` (of it), 0 to 100.
"""

from __future__ import annotations

import ctypes
import json
import sys
import wave
from pathlib import Path
from typing import Any

#: Of `espeak_Initialize` and `espeak_Synth`: give samples and wait for them; positions are characters; text is UTF-8.
_SYNCHRONOUS, _CHARACTERS, _UTF8 = 2, 1, 1
#: Numbers of the parameters (`espeak_PARAMETER`).
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}
_Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The synthesiser's library.

    Args:
        package: the unpacked package.
    """

    def __init__(self, package: Path):
        self._library = ctypes.CDLL(str(package / "espeakng_loader" / "libespeak-ng.so"))
        data = str(package / "espeakng_loader" / "espeak-ng-data").encode()
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        """Samples a second."""
        self._samples = bytearray()
        self._heard = _Heard(self._take)
        self._library.espeak_SetSynthCallback(self._heard)

    def _take(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self._samples.extend(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, job: dict[str, Any]) -> None:
        """Write the sound of a job into its file.

        Raises:
            SystemExit: there is no such voice.
        """
        if self._library.espeak_SetVoiceByName(job["voice"].encode()):
            raise SystemExit(f"eSpeak NG has no voice {job['voice']!r}")
        for name, number in _PARAMETERS.items():
            self._library.espeak_SetParameter(number, job[name], 0)
        self._samples.clear()
        text = job["text"].encode() + b"\0"
        self._library.espeak_Synth(text, len(text), 0, _CHARACTERS, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        with wave.open(job["file"], "wb") as file:
            file.setparams((1, 2, self.rate, 0, "NONE", ""))
            file.writeframes(bytes(self._samples))


if __name__ == "__main__":
    espeak = Espeak(Path(sys.argv[1]))
    for line in sys.stdin:
        espeak.say(json.loads(line))
