"""Reading lines of text files, plain or gzip, with a bound on how much one line may take."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from burnish.errors import UserError
from burnish.task import BrokenRow

#: A longer line is reported as broken; nothing sensible has lines like that, and memory stays bounded.
MOST_LINE_BYTES = 16 * 2**20


def open_lines(path: Path) -> Iterator[tuple[int, str | BrokenRow]]:
    """Yield `(line number, line)` with line ends as `\\n`; a line that is not UTF-8 text comes as a broken row.

    Raises:
        UserError: the file cannot be opened or unpacked.
    """
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as handle:
            number = 0
            while line := handle.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = handle.readline(MOST_LINE_BYTES)
                    yield number, BrokenRow(f"{path}:{number}", f"the line is longer than {MOST_LINE_BYTES:,} bytes")
                    continue
                yield number, _decode(path, number, line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _decode(path: Path, number: int, line: bytes) -> str | BrokenRow:
    where = f"{path}:{number}"
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if b"\x00" in line:
        return BrokenRow(where, "holds a NUL byte: is this binary data?")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BrokenRow(where, f"is not UTF-8 text (byte {error.start + 1} of the line)")
    return text[:-2] + "\n" if text.endswith("\r\n") else text
