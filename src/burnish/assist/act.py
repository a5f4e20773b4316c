"""What is done for an intent: a program is run, a reply is chosen."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence

from burnish.assist.settings import Action, slots_of

#: Stands in a reply for what the program wrote.
OUTPUT = "output"
#: Characters of it that are said.
_MOST_SAID = 500
#: A program that writes more is killed.
MOST_BYTES = 64 * 2**20
#: Seconds between two looks whether a program has ended.
_PAUSE = 0.01


class Unfit(Exception):
    """A request that cannot be carried out: a slot is missing, or its value is none that a program should get."""


class Failed(Exception):
    """A program that did not come to its end."""


def reply_of(action: Action, slots: Mapping[str, str]) -> str:
    """Return the first reply whose slots were all named, still to be filled in; `{output}` is what the program says.

    Raises:
        Unfit: none is.

    >>> action = Action(reply=("Lights in the {area} are on.", "On."))
    >>> reply_of(action, {"area": "kitchen"}), reply_of(action, {})
    ('Lights in the {area} are on.', 'On.')
    """
    for text in action.reply:
        if slots.keys() | {OUTPUT} >= set(slots_of(text)):
            return text
    raise Unfit("a slot that every reply needs was not named")


def command_of(words: Sequence[str], slots: Mapping[str, str]) -> list[str]:
    """Return a program's words with slots filled in, each within its word.

    Raises:
        Unfit: a slot was not named, or its value begins like an option or holds a control character.

    >>> command_of(["light", "--room={area}"], {"area": "kitchen; rm -r"})
    ['light', '--room=kitchen; rm -r']
    """
    used = {name: slots[name] for word in words for name in slots_of(word) if name in slots}
    missing = {name for word in words for name in slots_of(word)} - used.keys()
    if missing:
        raise Unfit(f"{', '.join(sorted(missing))} was not named")
    for name, value in used.items():
        if value.startswith("-") or not value.isprintable():
            raise Unfit(f"{name} is {value!r}, which no program gets")
    return [word.format_map(used) for word in words]


def run(words: Sequence[str], seconds: float) -> tuple[str, str]:
    """Run a program without a shell, and return what it wrote, and what went wrong; an empty text if nothing did."""
    try:
        code, output, said = finished(words, seconds)
    except Failed as error:
        return "", str(error)
    written = " ".join(output[: 4 * _MOST_SAID].decode("utf-8", "replace").split())[:_MOST_SAID]
    if not code:
        return written, ""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return written, f"ended with {code}" + (f": {lines[-1]}" if lines else "")


def finished(words: Sequence[str], seconds: float) -> tuple[int, bytes, bytes]:
    """Run a program without a shell, and return its exit code and what it wrote to its two outputs until it ended.

    Raises:
        Failed: it cannot be run, or was killed because it takes too long or writes too much.
    """
    until = time.monotonic() + seconds
    try:
        program = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        raise Failed(f"cannot be run ({error.strerror})") from error
    with program, selectors.DefaultSelector() as pipes:
        written = {pipe.fileno(): bytearray() for pipe in (program.stdout, program.stderr) if pipe}
        for pipe in written:
            pipes.register(pipe, selectors.EVENT_READ)
        try:
            while True:
                ended = program.poll() is not None
                ready = pipes.select(0 if ended else _PAUSE)
                for key, _ in ready:
                    piece = os.read(key.fd, 2**16)
                    written[key.fd] += piece
                    if not piece:
                        pipes.unregister(key.fd)
                    if len(written[key.fd]) > MOST_BYTES:
                        raise Failed(f"wrote more than {MOST_BYTES // 2**20} MiB")
                if ended and not ready:  # what it started may hold its outputs for longer
                    output, said = map(bytes, written.values())
                    return program.returncode, output, said
                if time.monotonic() > until:
                    raise Failed(f"took longer than {seconds:g} seconds")
        finally:
            program.kill()  # nothing, where it has ended
