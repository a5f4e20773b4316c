"""Encoded examples on disk: each feature one flat array and its offsets, memory-mapped; no row is encoded twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

from burnish.errors import UserError
from burnish.run import remove_folder, replace_folder
from burnish.task import Example


class Store:
    """Examples in the order they were encoded. `store[i]` is one; `where(i)` says which row it came from.

    Args:
        path: a folder made by `Store.build`.

    Raises:
        Damaged: a file is missing, or not as it was written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            meta = json.loads((path / "store.json").read_text())
            if {name: _checksum(path / name) for name in meta["checksums"]} != meta["checksums"]:
                raise Damaged(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(path) from error
        self.features: list[str] = meta["features"]
        self._values = {name: _mapped(path / f"{name}.values.npy") for name in self.features}
        self._offsets = {name: _mapped(path / f"{name}.offsets.npy") for name in self.features}
        self._size: int = meta["size"]
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
        start, end = self._offsets["input_ids"][index : index + 2]
        return int(end - start)

    def lengths(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the number of positions of every example, or of some."""
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
        with open(self.path / "where.txt", encoding="utf-8") as handle:
            for number, line in enumerate(handle):
                if number == index:
                    return line.rstrip("\n")
        raise IndexError(index)

    @staticmethod
    def build(path: Path, examples: Iterable[tuple[Example, str]]) -> Store:
        """Write examples to the folder `path`, whole or not at all, and open it; a damaged one is written again.

        Raises:
            UserError: there is no example, or the folder cannot be written.
        """
        if path.exists():
            with suppress(Damaged):
                return Store(path)
        pieces, places = _collected(examples)  # apart: what goes wrong in reading the rows is not this folder's fault
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        try:
            remove_folder(temporary)
            temporary.mkdir(parents=True)
            try:
                _write(temporary, pieces, places)
                replace_folder(temporary, path)
            finally:
                remove_folder(temporary)
        except OSError as error:
            raise UserError(
                f"{path.parent}: encoded rows cannot be kept there ({error.strerror}). Set BURNISH_CACHE to a folder that "
                "can be written and has room."
            ) from error
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
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _collected(examples: Iterable[tuple[Example, str]]) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Return the arrays of each feature, and where each example came from."""
    pieces: dict[str, list[np.ndarray]] = {}
    places: list[str] = []
    for example, where in examples:
        for name, value in example.items():
            pieces.setdefault(name, []).append(np.asarray(value))
        places.append(where)
    if not places:
        raise UserError("The data holds no text to learn from after encoding; give more rows.")
    return pieces, places


def _write(folder: Path, pieces: dict[str, list[np.ndarray]], places: list[str]) -> None:
    for name, values in pieces.items():
        flat = np.concatenate(values)
        np.save(folder / f"{name}.values.npy", flat.astype(np.float32 if flat.dtype.kind == "f" else _smallest(flat)))
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        np.save(folder / f"{name}.offsets.npy", offsets)
    (folder / "where.txt").write_text("".join(f"{place}\n" for place in places), encoding="utf-8")
    checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    about = {"features": list(pieces), "size": len(places), "checksums": checksums}
    (folder / "store.json").write_text(json.dumps(about))


def _smallest(flat: np.ndarray) -> type[np.integer]:
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    return next(kind for kind in _integers(low) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _integers(low: int) -> Iterator[type[np.integer]]:
    yield from (np.int8, np.int16, np.int32, np.int64) if low < 0 else (np.uint8, np.uint16, np.uint32, np.int64)
