"""Images and sounds as rows have them, decoded one at a time in child processes with little memory and little time."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from burnish.run import home_path

#: A larger file is refused unread.
MOST_FILE_BYTES = 256 * 2**20
#: Longest that decoding one file may take.
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Medium:
    """An image or a sound, not decoded yet.

    Args:
        name: what people know it by: its file, or the row that holds it.
        content: the path of a file, the bytes of one, or what it decodes to.
    """

    name: str
    content: Path | bytes | np.ndarray

    def read(self) -> bytes:
        """Return the bytes of the file, or of what it decodes to.

        Raises:
            OSError: the file cannot be read.
        """
        if isinstance(self.content, Path):
            return self.content.read_bytes()
        return self.content if isinstance(self.content, bytes) else self.content.tobytes()

    @cached_property
    def digest(self) -> str:
        """The sha256 of the content; of a file that cannot be read, of its name."""
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except OSError:
            return hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).hexdigest()

    def decoded(self, kind: str, rate: int) -> np.ndarray:
        """Return what `Decoder.decode` would, of content that is decoded already."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


def file_of(value: Any, where: str, folder: Path, made: Callable[[str, Path | bytes], Any]) -> Any:
    """Return the medium that a path, bytes or `{"bytes": ..., "path": ...}` stands for, why it is none, or other values.

    Args:
        where: of the row.
        folder: from which a path is taken.
        made: makes one of its name and content.
    """
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return made(where, bytes(value)) if value else "is empty"
    if isinstance(value, str | os.PathLike):
        path = folder / home_path(value)
        if "://" in str(value):
            return f"{str(value)[:80]!r} is an address; nothing is fetched: give a file"
        return made(str(path), path) if os.path.isfile(path) else f"{str(path)!r} is no file"
    return (value,)


class Decoder:
    """A child process that decodes (`burnish.data.decoder`); one that crashes or hangs is replaced."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, content: bytes, kind: str, rate: int = 0, seconds: int = 0) -> np.ndarray | str:
        """Return the pixels of an image or the samples of a sound, or why it has none.

        Args:
            content: of the file.
            kind: "color": uint8 [height, width, 3], turned upright; "reduced": the same, of a JPEG that is too large at a half
                of its size or less; "mask": the stored numbers, uint16 [height, width];
                "sound": its channels' mean, int16 [samples].
            rate: samples a second that a sound shall have.
            seconds: longest that it may take; one that is longer is not decoded further.
        """
        child = self._started()
        timer = threading.Timer(MOST_SECONDS, child.kill)
        timer.start()
        try:
            assert child.stdin is not None and child.stdout is not None  # pipes
            child.stdin.write(struct.pack("<cIIQ", kind[:1].encode(), rate, seconds, len(content)))
            child.stdin.write(content)
            child.stdin.flush()
            height, width, size = struct.unpack("<IIQ", _exactly(child.stdout, 16))
            answer = _exactly(child.stdout, size)
        except (OSError, EOFError):
            self.close()
            return "could not be decoded within the memory and time that one file may take"
        finally:
            timer.cancel()
        if height == 0:
            return answer.decode("utf-8", "replace")
        found = np.frombuffer(answer, {"mask": np.uint16, "sound": np.int16}.get(kind, np.uint8))
        return found if kind == "sound" else found.reshape((height, width) if kind == "mask" else (height, width, -1))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-P", "-m", "burnish.data.decoder"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each thread would take of the little memory
            self._child = subprocess.Popen(command, env=alone, **pipes)
        return self._child

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore  (a pipe)


def _exactly(stream: Any, size: int) -> bytes:
    found = stream.read(size)
    if len(found) != size:
        raise EOFError
    return found


Decode = Callable[[Medium, str], "np.ndarray | str"]
"""Returns the pixels of an image ("color", "reduced" or "mask") or the samples of a sound ("sound"), or why it has none."""


class Decoders:
    """Some decoders, used by as many threads.

    Args:
        count: how many. Default: as many as the machine has processors.
        rate: see `Decoder.decode`.
        seconds: see `Decoder.decode`.

    >>> with Decoders(2) as decoders:
    ...     list(decoders.each([1, 2, 3], lambda number, decode: 10 * number))
    [10, 20, 30]
    """

    def __init__(self, count: int | None = None, rate: int = 0, seconds: int = 0):
        self.count, self.rate, self.seconds = count or os.cpu_count() or 1, rate, seconds
        self._own = threading.local()
        self._all: list[Decoder] = []

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: Any) -> None:
        for decoder in self._all:
            decoder.close()

    def decode(self, medium: Medium, kind: str = "color") -> np.ndarray | str:
        """Return what an image or a sound decodes to, or why it has nothing."""
        if isinstance(medium.content, np.ndarray):
            return medium.decoded(kind, self.rate)
        try:
            about = medium.content.stat() if isinstance(medium.content, Path) else None
            if about and not stat.S_ISREG(about.st_mode):
                return "is a device or a pipe, which may never end"
            if about and about.st_size > MOST_FILE_BYTES:
                return f"is larger than {MOST_FILE_BYTES // 2**20} MiB"
            content = medium.read()
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if not content:
            return "is empty"
        if not hasattr(self._own, "decoder"):
            self._own.decoder = Decoder()
            self._all.append(self._own.decoder)
        return self._own.decoder.decode(content, kind, self.rate, self.seconds)

    def each(self, items: Iterable[Any], work: Callable[[Any, Decode], Any]) -> Iterator[Any]:
        """Yield `work(item, decode)` of each item, in order; some are under way at once."""
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.count, thread_name_prefix="decoder") as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item, self.decode))
                    if len(waiting) > 4 * self.count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
