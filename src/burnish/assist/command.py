"""`burnish assist`: talks to the assistant that a file describes, in a terminal or over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np

    from burnish.assist.chain import Chain, Event

#: Bytes of a block of samples from standard input: a tenth of a second at 16,000.
_BLOCK = 3_200
_INSTEAD = "Name texts or sounds after the assistant, or use --microphone."


def assist(
    file: str,
    /,
    *said: str,
    microphone: Annotated[bool, Parameter(negative="")] = False,
    serve: int | None = None,
    replies: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Talk to an assistant: sounds or texts in; what it hears, understands, does and answers out, and the time it took.

    Parameters
    ----------
    file:
        What the assistant is made of (.yaml): listen, understand, speak, actions.
    said:
        Sound files or texts. None: lines of text from standard input.
    microphone:
        Listen to samples on standard input, 16 bits, one channel, at the rate that the recognition model hears, mostly
        16000: arecord -q -t raw -f S16_LE -r 16000 | burnish assist home.yaml --microphone
    serve:
        Answer on this port of this machine instead: a page, and POST /talk.
    replies:
        A folder into which each spoken reply is written, 1.wav, 2.wav, ...
    json:
        Print one JSON object a stage.
    """
    from burnish.api import load_torch
    from burnish.assist.settings import read_assistant
    from burnish.errors import UserError
    from burnish.terminal import typed_lines

    if bool(said) + microphone + (serve is not None) > 1:
        raise UserError("Give sounds and texts, --microphone or --serve, one of the three.")
    assistant = read_assistant(Path(file))
    load_torch()
    from burnish.assist.chain import Chain

    chain = Chain(assistant)
    typed = typed_lines("type what you want, a line each (Ctrl-D ends it)", _INSTEAD)
    if serve is not None:
        _serve(chain, serve)
        return
    asked = spoken = failed = 0
    for request in _streamed(chain) if microphone else (_utterances(chain, given) for given in said or typed):
        asked += 1
        for event in chain.answers(request):
            failed += event["stage"] == "problem"
            if "wav" in event:
                spoken += 1
                event |= _heard_by_people(event["wav"], assistant.speak.play, replies, spoken)
            print(_line(event, json), flush=True)
    if failed:
        raise UserError(f"{failed} of {asked} requests could not be answered; `problem` says why.")


def _serve(chain: Chain, port: int) -> None:
    from burnish.assist.serve import Server

    with Server(chain, port) as server:
        print(f"talk to it at {server.address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        server.serve_forever()


def _utterances(chain: Chain, given: str) -> Iterator[str | np.ndarray]:
    """Yield what was said, as a text, or as the samples of each utterance in a sound.

    Raises:
        UserError: the file of a sound is missing, or it cannot be decoded.
    """
    from burnish.assist.serve import utterances
    from burnish.data.sounds import Sound
    from burnish.data.sources.sound import SoundSource
    from burnish.errors import UserError

    path = os.path.expanduser(given)
    if os.path.isfile(path):  # unlike Path's, these take any text for a name
        yield from utterances(chain, Sound(given, Path(path)))
    elif len(given.split()) == 1 and given.lower().endswith(SoundSource.endings):
        raise UserError(f"{given}: no such file.")
    else:
        yield os.fsencode(given).decode("utf-8", "replace")


def _streamed(chain: Chain) -> Iterator[list[np.ndarray]]:
    """Yield each utterance in the samples on standard input, as soon as it is whole; one of no samples if there is none.

    Raises:
        UserError: the assistant does not hear, or there are no such samples.
    """
    from burnish.errors import UserError

    if not chain.hears:
        raise UserError("listen.model: the assistant has none, so it reads only. Give it text.")
    for utterance in chain.ear().utterances(_blocks(chain.rate)):
        yield [utterance]


def _blocks(rate: int) -> Iterator[np.ndarray]:
    """Yield the samples on standard input, float32, as they come; the header of a WAV file may stand before them."""
    import numpy as np

    from burnish.data.sounds import FULL
    from burnish.errors import UserError
    from burnish.terminal import standard_input

    wanted = f"one channel of 16 bits at {rate:,} samples a second: arecord -q -t raw -f S16_LE -r {rate} | burnish ..."
    stream = standard_input(_INSTEAD).buffer
    if stream.isatty():
        raise UserError(f"--microphone: standard input is a terminal. Pipe samples into it, {wanted}")
    if stream.peek(4).startswith(b"RIFF"):
        try:
            with wave.open(stream) as header:  # it leaves the stream open, at the first sample
                channels, size, given = header.getparams()[:3]
        except (wave.Error, EOFError) as error:
            problem = str(error) or "it ends early"
            raise UserError(f"--microphone: the WAV file's header is broken ({problem}). Give {wanted}") from error
        if (channels, size, given) != (1, 2, rate):
            had = f"{channels} channels of {8 * size} bits at {given:,} samples a second"
            raise UserError(f"--microphone: the WAV file has {had}. Give {wanted}")
    rest = b""
    while block := stream.read1(_BLOCK):
        block = rest + block
        whole = len(block) // 2 * 2
        rest = block[whole:]
        yield np.frombuffer(block[:whole], "<i2").astype(np.float32) / FULL


def _heard_by_people(sound: bytes, play: tuple[str, ...], folder: str | None, number: int) -> Event:
    """Play a reply and write it into a folder, where that is asked for; return as `wav` its file, or how large it is.

    A player that fails is a `problem`.

    Raises:
        UserError: neither can be done.
    """
    from burnish.errors import UserError
    from burnish.run import write_atomic

    problem: Event = {}
    if play:
        try:
            if code := subprocess.run(play, input=sound, check=False).returncode:
                problem["problem"] = f"speak.play: {play[0]} ended with {code}"
        except OSError as error:
            raise UserError(f"speak.play: {play[0]} cannot be run ({error.strerror}).") from error
    if folder is None:
        return {"wav": f"{len(sound)} bytes", **problem}
    path = Path(folder) / f"{number}.wav"
    try:
        write_atomic(path, sound)
    except OSError as error:
        raise UserError(f"--replies: {path} cannot be written ({error.strerror}).") from error
    return {"wav": str(path), **problem}


def _line(event: Event, as_json: bool) -> str:
    if as_json:
        return json.dumps(event, ensure_ascii=False)
    shown: dict[str, Any] = {name: value for name, value in event.items() if name not in ("stage", "seconds")}
    said = shown.pop("text", None)
    rest = "  ".join(f"{name} {value}" for name, value in shown.items() if value not in (None, {}, []))
    line = f"{event['stage']:<11}{event['seconds']:7.3f} s  " + "  ".join(filter(None, (said, rest)))
    return "".join(letter if letter.isprintable() else " " for letter in line)  # a terminal obeys some of the others
