"""The errors burnish raises on purpose, and the exit code each one stands for.

    BurnishError
    ├── UserError    2   the user can mend it: what was given, what is allowed, what to do
    ├── GuardError   3   a guard stopped the run: non-finite number, disk full, out of memory
    └── Stopped     75   a signal stopped the run after saving; the same command continues it

Anything else is a bug: it keeps its traceback and exits 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BurnishError(Exception):
    """Base of every error that is shown as one sentence, without a traceback."""

    exit_code = 1


class UserError(BurnishError):
    """Something in the command, the recipe or the data that the user can mend."""

    exit_code = 2


class GuardError(BurnishError):
    """A guard stopped a run that would otherwise have gone wrong."""

    exit_code = 3


class Stopped(BurnishError):
    """The run was asked to stop; it saved its state and can be continued."""

    exit_code = 75


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean X?"` for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is in no registry: what was given, what there is, the nearest."""
    names = sorted(known)
    return UserError(f"Unknown {kind} {word!r}.{nearest(word, names)} Known: {', '.join(names)}.")
