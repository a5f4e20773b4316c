"""Encoded examples on disk: each feature one flat array and its offsets, memory-mapped; no row is encoded twice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from burnish.errors import UserError
from burnish.run import remove_folder, replace_folder
from burnish.task import BrokenRow, Example


class Store:
    """Examples in the order they were encoded. `store[i]` is one; `where(i)` says which row it came from.

    Args:
        path: a folder made by `Store.build`.

    Raises:
        Damaged: a file is missing, not as it was written, or of another version of burnish.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            meta = json.loads((path / "store.json").read_text())
            if {name: _checksum(path / name) for name in meta["checksums"]} != meta["checksums"]:
                raise Damaged(path)
            self.features: list[str] = meta["features"]
            self.broken = [BrokenRow(**row) for row in meta["broken"]]
            """The rows that turned out to be unusable."""
            self._size: int = meta["size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(path) from error
        self._values = {name: _mapped(path / f"{name}.values.npy") for name in self.features}
        self._offsets = {name: _mapped(path / f"{name}.offsets.npy") for name in self.features}
        self.remembered: Callable[[int], np.ndarray] | None = None
        """What a frozen model answered to an example, which then has a field of that name; see `Task.frozen_model`."""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        example = {}
        for name in self.features:
            start, end = self._offsets[name][index : index + 2]
            example[name] = self._values[name][start:end]
        if self.remembered is not None:
            example["remembered"] = self.remembered(index)
        return example

    def length(self, index: int) -> int:
        """Return the number of positions of one example."""
        return int(self.lengths([index])[0])

    def lengths(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the number of positions of every example, or of some."""
        if "positions" in self.features:  # each example has its number
            return np.array(self._values["positions"] if rows is None else self._values["positions"][rows], np.int64)
        offsets = self._offsets["input_ids"]
        if rows is None:
            return np.diff(offsets)
        chosen = np.asarray(rows)
        return offsets[chosen + 1] - offsets[chosen]

    def values(self, feature: str) -> np.ndarray:
        """Return a feature of all examples, one after another."""
        return self._values[feature]

    def where(self, index: int) -> str:
        """Return file and line of the row an example came from."""
        with open(self.path / "where.txt", encoding="utf-8", errors="surrogatepass", newline="\n") as handle:
            for number, line in enumerate(handle):
                if number == index:
                    return re.sub(r"\\(.)", lambda found: found[1].replace("n", "\n"), line.rstrip("\n"))
        raise IndexError(index)

    @staticmethod
    def build(path: Path, examples: Iterable[tuple[Example, str] | BrokenRow]) -> Store:
        """Write examples to the folder `path`, whole or not at all, and open it; a damaged one is written again.

        Raises:
            UserError: there is no example, or the folder cannot be written.
        """
        if path.exists():
            with suppress(Damaged):
                return Store(path)
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        try:
            with _keeping(path.parent):
                remove_folder(temporary)
                temporary.mkdir(parents=True)
            collected = _Collected(temporary)
            for one in examples:  # apart: what goes wrong in reading the rows is not this folder's fault
                with _keeping(path.parent):
                    collected.add(one)
            if not collected.places and not collected.broken:
                raise UserError("The data holds no text to learn from after encoding; give more rows.")
            with _keeping(path.parent):
                collected.close()
                replace_folder(temporary, path)
        finally:
            remove_folder(temporary)
        return Store(path)


class Damaged(Exception):
    """A store's files are not as they were written."""


def _checksum(path: Path) -> str:
    content = xxhash.xxh3_128()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 22):
            content.update(piece)
    return content.hexdigest()


def _mapped(path: Path) -> np.ndarray:
    """Return a file's array, mapped into memory. As a plain array: numpy's memmap takes three times as long to slice."""
    if not path.exists():  # pixels
        path = path.with_suffix(".bin")
        return np.memmap(path, np.uint8, "r").view(np.ndarray) if path.stat().st_size else np.zeros(0, np.uint8)
    return np.load(path, mmap_mode="r").view(np.ndarray)


@contextmanager
def _keeping(folder: Path) -> Iterator[None]:
    """Say where encoded rows could not be written.

    Raises:
        UserError: in place of what the system said.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: encoded rows cannot be kept there ({error.strerror}). Set BURNISH_CACHE to a folder that can be "
            "written and has room."
        ) from error


class _Collected:
    """Examples on their way into a folder. Bytes such as pixels are written as they come, other numbers at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pieces: dict[str, list[np.ndarray]] = {}
        self.sizes: dict[str, list[int]] = {}
        self.places: list[str] = []
        self.broken: list[BrokenRow] = []
        self._files: dict[str, Any] = {}

    def add(self, one: tuple[Example, str] | BrokenRow) -> None:
        """Take in an example and where it came from, or a row that gave none."""
        if isinstance(one, BrokenRow):
            self.broken.append(one)
            return
        example, where = one
        for name, value in example.items():
            value = np.asarray(value)
            self.sizes.setdefault(name, []).append(len(value))
            if value.dtype != np.uint8:
                self.pieces.setdefault(name, []).append(value)
                continue
            if name not in self._files:
                self._files[name] = open(self.folder / f"{name}.values.bin", "wb")  # noqa: SIM115  (closed by `close`)
            self._files[name].write(np.ascontiguousarray(value).data)
        self.places.append(where)

    def close(self) -> None:
        """Write what is left."""
        for file in self._files.values():
            file.close()
        for name, values in self.pieces.items():
            flat = np.concatenate(values)
            kind = np.float32 if flat.dtype.kind == "f" else _smallest(flat)
            np.save(self.folder / f"{name}.values.npy", flat.astype(kind))
        for name, sizes in self.sizes.items():
            offsets = np.zeros(len(sizes) + 1, np.int64)
            np.cumsum(sizes, out=offsets[1:])
            np.save(self.folder / f"{name}.offsets.npy", offsets)
        lines = (place.replace("\\", r"\\").replace("\n", r"\n") for place in self.places)  # a name may hold any byte
        text = "".join(f"{line}\n" for line in lines)
        (self.folder / "where.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        checksums = {path.name: _checksum(path) for path in sorted(self.folder.iterdir())}
        about = {
            "features": list(self.sizes),
            "size": len(self.places),
            "checksums": checksums,
            "broken": [vars(row) for row in self.broken],
        }
        (self.folder / "store.json").write_text(json.dumps(about))


def _smallest(flat: np.ndarray) -> type[np.integer]:
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    return next(kind for kind in _integers(low) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _integers(low: int) -> Iterator[type[np.integer]]:
    yield from (np.int8, np.int16, np.int32, np.int64) if low < 0 else (np.uint8, np.uint16, np.uint32, np.int64)
