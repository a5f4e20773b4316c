"""Durations of a run (`"500 steps"`, `"3 epochs"`, `"10 Mtok"`, `"5%"`, `"30 seconds"`) and readable sizes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_UNITS = {
    "step": "steps", "steps": "steps",
    "epoch": "epochs", "epochs": "epochs",
    "row": "rows", "rows": "rows",
    "tok": "tokens", "token": "tokens", "tokens": "tokens",
    "%": "percent", "percent": "percent",
    "s": "seconds", "second": "seconds", "seconds": "seconds",
    "min": "minutes", "minute": "minutes", "minutes": "minutes",
    "h": "hours", "hour": "hours", "hours": "hours",
}  # fmt: skip
_PREFIXES = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kKMGBT]?)\s*([a-zA-Z%]*)\s*")
_EXAMPLES = '"500 steps", "3 epochs", "10 Mtok", "5%" or "30 seconds"'
#: Longer than any run, and still a number that arithmetic is exact enough for.
_MOST = 1e18


@dataclass(frozen=True)
class Duration:
    """A length of training in one unit: steps, epochs, rows, tokens, percent (of the run) or seconds.

    >>> Duration.parse("10 Mtok")
    Duration(amount=10000000.0, unit='tokens')
    >>> Duration.parse(500).unit
    'steps'
    """

    amount: float
    unit: str

    @staticmethod
    def parse(value: str | int | Duration) -> Duration:
        """Return the duration written in `value`; a bare number is a number of steps.

        Raises:
            ValueError: the text is no duration, naming the forms that are.
        """
        if isinstance(value, Duration):
            return value
        match = _PATTERN.fullmatch(str(value))
        if match is None:
            wrong = "is below zero" if str(value).lstrip().startswith("-") else "is not a duration"
            raise ValueError(f"{value!r} {wrong}; write {_EXAMPLES}")
        number, prefix, word = match.groups()
        if prefix + word in _UNITS:  # "%" and "s" have no prefix; "k", "M" alone are no units
            prefix, word = "", prefix + word
        if not word and prefix:
            raise ValueError(f"{value!r} has no unit; write {_EXAMPLES}")
        unit = _UNITS.get(word.lower() or "steps")
        if unit is None:
            raise ValueError(f"{value!r} has the unknown unit {word!r}; write {_EXAMPLES}")
        amount = float(number) * _PREFIXES[prefix]
        if amount > (100 if unit == "percent" else _MOST):
            most = "all of the run, 100%" if unit == "percent" else "any run could be"
            raise ValueError(f"{_short(str(value))!r} is longer than {most}; write {_EXAMPLES}")
        if unit in ("minutes", "hours"):
            amount, unit = amount * (60 if unit == "minutes" else 3600), "seconds"
        return Duration(amount, unit)

    def __str__(self) -> str:
        amount = f"{self.amount:g}"
        return f"{amount}%" if self.unit == "percent" else f"{amount} {self.unit}"

    def rows(self, *, rows_per_epoch: int, batch: int, tokens_per_row: float) -> int:
        """Return how many rows of training this duration covers (a run's length; at least 1)."""
        per_unit = {
            "steps": batch,
            "epochs": rows_per_epoch,
            "rows": 1,
            "tokens": 1 / max(tokens_per_row, 1e-9),
        }.get(self.unit)
        if per_unit is None:
            raise ValueError(f"a run cannot be {self} long; write steps, epochs, rows or tokens")
        return max(1, math.ceil(round(self.amount * per_unit, 6)))

    def steps(self, *, total_steps: int, rows_per_epoch: int, batch: int, tokens_per_row: float) -> int:
        """Return how many steps this duration covers inside a run of `total_steps` steps (0 if it is zero)."""
        if self.unit == "percent":
            return round(total_steps * self.amount / 100)
        if self.amount == 0:
            return 0
        return math.ceil(self.rows(rows_per_epoch=rows_per_epoch, batch=batch, tokens_per_row=tokens_per_row) / batch)


def _check_duration(value: str) -> str:
    Duration.parse(value)
    return value


def _to_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DurationText = Annotated[str, BeforeValidator(_to_text), AfterValidator(_check_duration)]
"""A setting that holds a duration, kept as it was written."""


def _check_some(value: str) -> str:
    if Duration.parse(value).amount == 0:
        raise ValueError(f"{value!r} is no time at all; give more than 0, such as {_EXAMPLES}")
    return value


SomeDurationText = Annotated[DurationText, AfterValidator(_check_some)]
"""A setting that holds a duration above zero, kept as it was written."""


def share(text: str) -> float:
    """Return a share of the whole in [0, 1): `"10%"` and `"0.1"` are both 0.1.

    Raises:
        ValueError: the text is no share.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", str(text))
    value = float(match.group(1)) / (100 if match.group(2) else 1) if match else -1.0
    if not 0 <= value < 1:
        raise ValueError(f'{text!r} is not a share; write "10%" or 0.1, at least 0 and below 1')
    return value


def _check_share(value: str) -> str:
    share(value)
    return value


ShareText = Annotated[str, BeforeValidator(_to_text), AfterValidator(_check_share)]
"""A setting that holds a share, kept as it was written."""


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def readable_bytes(count: float) -> str:
    """Return a size in bytes as people read it: `readable_bytes(1536)` is `"1.5 KiB"`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError  # unreachable: TiB ends the loop


def readable_count(count: float) -> str:
    """Return a count as people read it: `readable_count(124439808)` is `"124.4 M"`."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000 or unit == " T":
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError


def readable_seconds(seconds: float) -> str:
    """Return a time span as people read it: `readable_seconds(75)` is `"1:15"`."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def steps_words(count: int) -> str:
    """Return a number of steps as words.

    >>> steps_words(1), steps_words(1450)
    ('1 step', '1,450 steps')
    """
    return f"{count:,} step{'' if count == 1 else 's'}"
