"""What is done for an intent: a program is run, a reply is chosen."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from burnish.assist.settings import Action, slots_of

#: Stands in a reply for what the program wrote.
OUTPUT = "output"
#: Characters of it that are said.
_MOST_SAID = 500


class Unfit(Exception):
    """A request that cannot be carried out: a slot is missing, or its value is none that a program should get."""


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
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "", f"took longer than {seconds:g} seconds"
    except OSError as error:
        return "", f"cannot be run ({error.strerror})"
    written = " ".join(done.stdout[: 4 * _MOST_SAID].decode("utf-8", "replace").split())[:_MOST_SAID]
    if not done.returncode:
        return written, ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return written, f"ended with {done.returncode}" + (f": {said[-1]}" if said else "")
