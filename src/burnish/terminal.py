"""What a person sees while burnish works: sentences, tables and one progress line; all also go to RUN/log.txt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from burnish.errors import UserError
from burnish.units import readable_count, readable_seconds

#: Seconds between progress lines where no terminal can redraw one.
_PLAIN_SECONDS = 10.0


class Terminal:
    """Prints to stdout, or to stderr when stdout carries JSON.

    Args:
        to_stderr: keep stdout free.
        quiet: print nothing; log.txt is still written.
    """

    def __init__(self, *, to_stderr: bool = False, quiet: bool = False):
        self._to_stderr, self._quiet = to_stderr, quiet
        self._file: TextIO | None = None
        self._progress: Any = None
        self._bar: Any = None
        self._printed = 0.0

    @cached_property
    def console(self) -> Any:
        """What prints; made when there is something to print."""
        from rich.console import Console

        console = Console(stderr=self._to_stderr, highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 140  # a file or pipe has no width of its own
        return console

    def open_log(self, path: Path) -> None:
        """Repeat every sentence in this file from now on."""
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  (closed by `close`)

    def close(self) -> None:
        """Close the log file."""
        if self._file:
            self._file.close()
            self._file = None

    def say(self, text: str, *, style: str = "") -> None:
        """Print a sentence."""
        if not self._quiet:
            self.console.print(text, style=style or None, markup=False)
        self._write(text)

    def _write(self, text: str) -> None:
        if self._file:
            self._file.write(f"{datetime.now().isoformat(timespec='seconds')}  {text}\n")
            self._file.flush()

    def facts(self, title: str, rows: list[tuple[str, str, str]]) -> None:
        """Print named values with their reasons, aligned."""
        for name, value, why in rows:
            self._write(f"{name}: {value}" + (f" ({why})" if why else ""))
        if self._quiet:
            return
        from rich.table import Table

        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
        )
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold", ratio=2)
        table.add_column(style="dim", overflow="fold", ratio=2)
        for name, value, why in rows:
            table.add_row(f"  {name}", value, why)
        self.console.print(table)

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        """Show a progress line while the block runs; `advance` moves it."""
        self._printed = time.monotonic()
        self._started, self._first = time.monotonic(), done
        self._total, self._name = total, name
        if self._quiet or not self.console.is_terminal:
            self._progress = None
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, refresh_per_second=5, transient=True) as self._progress:
            self._bar = self._progress.add_task(name, total=total, completed=done, note="")
            try:
                yield
            finally:
                self._progress = None

    def advance(self, done: int, note: str = "") -> None:
        """Move the progress line to `done`, with a note such as the loss."""
        if self._progress is not None:
            self._progress.update(self._bar, completed=done, note=note)
        elif time.monotonic() - self._printed > _PLAIN_SECONDS and not self._quiet:
            now = time.monotonic()
            rate = (done - self._first) / max(now - self._started, 1e-9)
            left = readable_seconds((self._total - done) / rate) if rate > 0 else "?"
            self._printed = now
            self.say(f"{self._name} {done}/{self._total}  {note}  left {left}")


class StepNote:
    """The note of the training line: loss, rate and learning rate, smoothed over the last steps."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.rate = 0.0

    def __call__(self, line: dict[str, Any]) -> str:
        if line["loss"] is not None:
            self.loss = line["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * line["loss"]
        rate = line["targets"] / max(line["seconds"], 1e-9)
        self.rate = rate if not self.rate else 0.9 * self.rate + 0.1 * rate
        what = "targets" if line["targets"] > line["rows"] else "rows"
        loss = f"{self.loss:.4f}" if self.loss is not None else "not finite"
        return f"loss {loss}  {readable_count(self.rate)} {what}/s  lr {line['lr']:.2e}"


def fail(text: str) -> None:
    """Print an error to stderr."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(f"burnish: {text}", style="red", markup=False)
    sys.stderr.flush()


def standard_input(instead: str) -> Any:
    """Return standard input.

    Raises:
        UserError: it is closed; `instead` says what else can be done.
    """
    if sys.stdin is None:
        raise UserError(f"Standard input is closed. {instead}")
    return sys.stdin


def typed_lines(hint: str, instead: str) -> Iterator[str]:
    """Yield the lines of standard input, decoded as arguments are.

    Args:
        hint: what is said where somebody types them.
        instead: what else can be done.

    Raises:
        UserError: it is closed, or no text.
    """
    lines = standard_input(instead)
    lines.reconfigure(errors="surrogateescape")
    if lines.isatty():
        print(f"burnish: {hint}", file=sys.stderr, flush=True)
    for line in lines:
        if "\0" in line:
            raise UserError(f"Standard input is no text. {instead}")
        yield line.rstrip("\n")


def show_answer(answer: dict[str, Any]) -> None:
    """Print one prediction for a person."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if "generated" in answer:
        asked = next(iter(answer.values()))
        ends = "" if "text" in answer and "candidates" not in answer else "\n"
        console.print(asked if isinstance(asked, str) else asked[-1]["content"], style="bold", end=ends, markup=False)
        console.print(answer["generated"], markup=False)
        if "candidates" in answer:
            console.print(f"  {_ranked(answer)}", markup=False)
        console.print()
        return
    if "label" in answer:
        console.print(f"{answer['label']}  {answer['score']:.1%}  {next(iter(answer.values()))}", markup=False)
        return
    first, *others = answer.items()
    console.print(str(first[1]), style="bold", markup=False)
    for name, value in others:
        if name == "samples":
            value = "with --json, or as a file with --generate.sounds FOLDER"
        console.print(f"  {name.replace('_', ' ')}: {_in_words(value)}", markup=False)
    console.print()


def _ranked(answer: Mapping[str, Any]) -> str:
    """Return in words why an answer was chosen among others."""
    found = answer["candidates"]
    safe = sum(1 for one in found if one["safe"])
    if not safe:
        return f"none of {len(found)} answers is safe enough (--generate.safety)"
    ratings = ", ".join(f"{name} {chance:.0%}" for name, chance in found[0]["ratings"].items())
    return f"{ratings}; best of {safe} safe answers of {len(found)}"


#: Parts of an answer that are said otherwise, or that a person cannot read.
_UNSAID = ("score", "mask")


def _in_words(value: Any) -> str:
    """Return part of an answer as a person reads it.

    >>> _in_words([{"token": "king", "score": 0.5}, {"token": "stone", "score": 0.25}])
    'king 50%, stone 25%'
    """
    if isinstance(value, Mapping):
        score = f" {value['score']:.0%}" if isinstance(value.get("score"), float) else ""
        return " ".join(_in_words(inner) for name, inner in value.items() if name not in _UNSAID) + score
    if isinstance(value, list):
        return ("; " if value and isinstance(value[0], list) else ", ").join(map(_in_words, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_info(found: dict[str, Any]) -> None:
    """Print what `burnish.api.info` found."""
    terminal = Terminal()
    for title in ("tasks", "optimizers", "schedules", "sources", "versions", "machine"):
        terminal.facts(title, [(name, str(value), "") for name, value in found[title].items()])
    rows = [(name, f"{value['parameters']:,} parameters", value["source"]) for name, value in found["presets"].items()]
    terminal.facts("presets", rows)
