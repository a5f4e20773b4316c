"""What a model's frozen lower layers give for each row, computed once and kept on disk.

A folder `prefix/KEY` in the cache holds parts; each part is a folder with the rows' hidden states laid end to end
(`values.bin`), and for each row a digest of what the model sees of it, its length and a checksum (`rows.npz`). A part
appears by one rename and never changes. KEY names the frozen weights, the depth, the arithmetic, the threads and the
versions, so that another learning rate or seed finds the same folder, and another model or tokenizer never does.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.data.loader import Varied, collate
from burnish.data.store import Store
from burnish.engine import checkpoint
from burnish.env import fingerprint, free_disk_bytes, versions
from burnish.models.quantise import scales
from burnish.models.stack import Forward, Stack
from burnish.run import fsync_dir, remove_folder
from burnish.task import Batch, Task
from burnish.units import readable_bytes, readable_seconds

#: Positions computed at once when the cache is filled: enough for the matrix products, few enough for memory.
POSITIONS_AT_ONCE = 4096
#: Share of the free disk that what is stored at once may take; other caches make way for it.
MOST_DISK = 0.5
#: What a process writes and nothing has touched for so long was left by one that is dead.
STALE_SECONDS = 3600
_DIGEST_BYTES = 16
_KEY, _OURS = re.compile(r"[0-9a-f]{32}"), re.compile(r"part-[0-9a-f]{16}-\d+|\.tmp-.*")


class CacheUnusable(Exception):
    """Why there is no cache; the run goes on without one."""


def key_of(stack: Stack, model: Any, precision: str) -> str:
    """Return the name of what the frozen prefix computes."""
    if stack.apart:  # what is around the part does not change what it gives
        model = stack.backbone
    above = {id(value) for layer in stack.layers[stack.depth :] for value in layer.parameters()}
    named = [*model.named_parameters(), *model.named_buffers()]
    below = [(name, value) for name, value in named if not value.requires_grad and id(value) not in above]
    content = checkpoint.digest([*below, *scales(model)])
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_BELOW and "drop" not in k}
    found = [stack.depth, stack.output, stack.reads, str(stack.kind)]
    return fingerprint("prefix 1", content, config, *found, precision, *arithmetic(model))


def arithmetic(model: Any) -> tuple[dict[str, str], list[Any]]:
    """Return what the last bits of a model's results depend on: versions, the kind of device, and threads."""
    used = {name: version for name, version in versions().items() if name in ("torch", "transformers")}
    return used, [str(model.device.type), torch.get_num_threads()]


#: Settings of a model's head, which what lies below does not depend on; nor on dropout, or it could not be replayed.
_NOT_BELOW = frozenset(
    {"_name_or_path", "id2label", "label2id", "num_labels", "problem_type", "dtype", "architectures"}
)


@dataclass
class Filled:
    """What filling did, to be said to the user."""

    rows: int
    found: int
    """Rows that were there already."""
    size_bytes: int
    seconds: float
    """What computing and storing the others took."""
    seconds_once: float
    """What computing all of them takes."""

    @property
    def hits(self) -> str:
        """Which share of the rows was there already."""
        return f"{self.found / max(1, self.rows):.0%} were there"

    def sentence(self, epochs: float) -> str:
        """Return what filling did and what it saves in a run of some epochs."""
        took = (
            f", {readable_bytes(self.size_bytes)} stored in {readable_seconds(self.seconds)}" if self.size_bytes else ""
        )
        saved = max(0.0, self.seconds_once * epochs - self.seconds)
        return f"{self.hits}{took}; about {readable_seconds(saved)} saved"


@dataclass
class PrefixCache:
    """The stored hidden states of rows.

    Args:
        folder: `.../prefix/KEY`.
        width: of a hidden state.
        kind: numpy type that has the bytes of one number.
        torch_kind: their torch type.
    """

    folder: Path
    width: int
    kind: Any
    torch_kind: Any
    _parts: list[Any] = field(default_factory=list)
    _where: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    """Digest of a row to its part, first position and length."""
    _cost: tuple[float, int] = (0.0, 0)
    """Seconds that computing the parts took, and the vectors in them."""

    @property
    def seconds_per_vector(self) -> float:
        """What computing one vector takes."""
        return self._cost[0] / max(1, self._cost[1])

    @staticmethod
    def open(folder: Path, width: int, torch_kind: Any) -> PrefixCache:
        """Return the cache of a key, with those of its parts that are whole.

        Raises:
            CacheUnusable: the folder cannot be made, read or written.
        """
        kind = np.uint16 if torch_kind == torch.bfloat16 else np.uint32
        cache = PrefixCache(folder, width, kind, torch_kind)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)  # the least recently used folders are removed first
            probe = folder / f".tmp-probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
            _remove_stale(folder)
            for part in sorted(folder.glob("part-*")):
                cache._add(part)
        except OSError as error:
            raise CacheUnusable(f"{folder} cannot be used ({error.strerror})") from error
        return cache

    def _add(self, part: Path) -> None:
        """Take in the rows of a part whose checksums fit; a damaged row is computed again."""
        try:
            digests, lengths, sums, seconds = _read_index(part / "rows.npz")
            values = np.memmap(part / "values.bin", dtype=self.kind, mode="r").view(np.ndarray).reshape(-1, self.width)
        except (OSError, ValueError):
            return
        starts = np.concatenate([[0], np.cumsum(lengths)])
        number = len(self._parts)
        self._parts.append(values)
        self._cost = self._cost[0] + seconds, self._cost[1] + int(starts[-1])
        for row in range(len(lengths)):
            start, end = int(starts[row]), int(starts[row + 1])
            if end <= len(values) and zlib.crc32(values[start:end].data) == sums[row]:
                self._where[digests[row].tobytes()] = number, start, end - start

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._where

    def fetch(self, digests: Sequence[bytes]) -> Any:
        """Return the hidden states of rows, laid end to end: a tensor [positions, width]."""
        pieces = []
        for digest in digests:
            part, start, length = self._where[digest]
            pieces.append(self._parts[part][start : start + length])
        joined = np.concatenate(pieces)
        return torch.from_numpy(joined).view(self.torch_kind)

    def write(self, rows: Iterator[tuple[bytes, Any]]) -> None:
        """Store rows and their hidden states as one part, whole or not at all, and take it in.

        Raises:
            CacheUnusable: the disk is full, or cannot be written.
        """
        began = time.monotonic()
        temporary = self.folder / f".tmp-{os.getpid()}"
        remove_folder(temporary)
        digests, lengths, sums = [], [], []
        try:
            temporary.mkdir()
            with open(temporary / "values.bin", "wb") as handle:
                for digest, hidden in rows:
                    values = hidden.contiguous().cpu().view(torch.uint8).numpy()
                    digests.append(np.frombuffer(digest, np.uint8))
                    lengths.append(len(hidden))
                    sums.append(zlib.crc32(values.data))
                    handle.write(values.data)
                handle.flush()
                os.fsync(handle.fileno())
            with open(temporary / "rows.npz", "wb") as handle:
                np.savez(
                    handle,
                    digests=np.stack(digests),
                    lengths=np.array(lengths, np.int64),
                    checksums=np.array(sums, np.uint32),
                    seconds=time.monotonic() - began,
                )
                handle.flush()
                os.fsync(handle.fileno())
            name = hashlib.sha256(b"".join(sorted(d.tobytes() for d in digests))).hexdigest()[:16]
            target = self.folder / f"part-{name}-{time.time_ns()}"
            os.rename(temporary, target)
            fsync_dir(self.folder)
        except OSError as error:
            raise CacheUnusable(f"{self.folder} cannot be written ({error.strerror})") from error
        finally:
            remove_folder(temporary)
        self._add(target)


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the digests, lengths and checksums of a part's rows, and the seconds that computing them took.

    Raises:
        OSError, ValueError: it cannot be read, or is none of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as index:
            digests, lengths, sums = index["digests"], index["lengths"], index["checksums"]
            seconds = float(index["seconds"])
    # numpy and zipfile have these for damaged files; RuntimeError (also NotImplementedError) for flags they do not know
    except (KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not readable") from error
    ours = digests.dtype == np.uint8 and lengths.dtype == np.int64 and sums.dtype == np.uint32
    if not ours or digests.shape != (len(lengths), _DIGEST_BYTES) or sums.shape != lengths.shape or lengths.min() < 1:
        raise ValueError(f"{path}: another format")
    return digests, lengths, sums, seconds


@dataclass
class Prefix:
    """The frozen prefix of a model, replayed for the rows of one store.

    Args:
        cache: where the hidden states are.
        digests: of each row of the store, and view of it, that is in it.
    """

    cache: PrefixCache
    digests: dict[tuple[int, int], bytes]

    def __call__(self, rows: Sequence[int], views: Sequence[int] | None = None) -> Any:
        """Return what the prefix gives for rows, laid end to end; None if one of them is not stored.

        Args:
            views: which variation of each; None: rows do not vary.
        """
        wanted = [(row, view if self.varies else 0) for row, view in zip(rows, views or [0] * len(rows), strict=True)]
        if any(one not in self.digests for one in wanted):
            return None
        return self.cache.fetch([self.digests[one] for one in wanted])

    @cached_property
    def varies(self) -> bool:
        """Whether there is more than one view of a row."""
        return any(view for _, view in self.digests)


def digest_of(tensors: Mapping[str, Any]) -> bytes:
    """Return a digest of named tensors, such as what a model sees of a row."""
    content = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, value in sorted(tensors.items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return content.digest()


@dataclass(frozen=True)
class Work:
    """What is computed once for each example and kept, and how."""

    compute: Callable[[Batch], Sequence[Any]]
    """Returns the vectors of each example of a batch on the device: a tensor [any number, width] each."""
    vectors: Callable[[Batch], float]
    """Returns how many vectors that will be for a batch of one example; about, where it is not known before."""
    seen: Callable[[Batch], Mapping[str, Any]]
    """Returns the tensors of a batch of one example from which the vectors follow."""


def prefix_work(stack: Stack, forward: Forward) -> Work:
    """Return the computation of a model's frozen prefix.

    Args:
        forward: computes the model on a batch; left as soon as the prefix is done.
    """

    def compute(batch: Batch) -> Sequence[Any]:
        assert batch.lengths is not None  # rows that are laid end to end have known lengths
        stored = np.array(stack.stored_lengths(batch.lengths))
        return stack.prefix_of(forward, batch).split(stored.reshape(len(batch.rows), -1).sum(1).tolist())

    return Work(compute, lambda batch: sum(stack.stored_lengths(batch.lengths or [])), lambda batch: batch.inputs)


def fill(
    cache: PrefixCache,
    work: Work,
    task: Task,
    store: Store,
    rows: Sequence[int],
    device: str,
    progress: Callable[[int], None],
    views: int = 1,
    varied: Callable[[int, int], Varied] | None = None,
) -> tuple[Prefix, Filled]:
    """Compute what is not stored yet of the rows of a store, longest rows last, and return it ready for replay.

    Args:
        views: variations of each row.
        varied: returns what decides how a view of a row looks; None: rows do not vary.
        progress: called with the number of rows done; may raise to stop, and nothing is half-written then.

    Raises:
        CacheUnusable: there is no room, or writing failed.
    """
    began = time.monotonic()
    digests, vectors = {}, {}

    def batch_of(chosen: Sequence[tuple[int, int]]) -> Batch:
        return collate(
            store, task, [row for row, _ in chosen], None, [varied(*one) for one in chosen] if varied else None
        )

    wanted = [(row, view) for row in rows for view in range(views)]
    for one in wanted:
        batch = batch_of([one])
        digests[one], vectors[one] = digest_of(work.seen(batch)), work.vectors(batch)
    missing = list({digests[one]: one for one in wanted if digests[one] not in cache}.values())
    missing.sort(key=lambda one: store.length(one[0]))
    size = cache.width * np.dtype(cache.kind).itemsize
    needed = math.ceil(size * sum(vectors[one] for one in missing))
    make_room(cache.folder, needed)

    def computed() -> Iterator[tuple[bytes, Any]]:
        done, start = len(wanted) - len(missing), 0
        while start < len(missing):
            end = start + 1
            total = store.length(missing[start][0])
            while end < len(missing) and total + store.length(missing[end][0]) <= POSITIONS_AT_ONCE:
                total += store.length(missing[end][0])
                end += 1
            chosen = missing[start:end]
            pieces = work.compute(batch_of(chosen).to(device))
            yield from zip([digests[one] for one in chosen], [one.to(cache.torch_kind) for one in pieces], strict=True)
            start = end
            done += len(chosen)
            progress(done)

    if missing:
        cache.write(computed())
    prefix = Prefix(cache, digests)
    once = sum(vectors.values()) * cache.seconds_per_vector
    return prefix, Filled(len(wanted), len(wanted) - len(missing), needed, time.monotonic() - began, once)


def make_room(folder: Path, needed: int) -> None:
    """Remove the least recently used caches of other models until `needed` bytes fit.

    Raises:
        CacheUnusable: they do not fit even then.
    """
    try:
        others = sorted((path for path in folder.parent.iterdir() if path != folder and _is_cache(path)), key=_used)
        while needed > MOST_DISK * free_disk_bytes(folder):
            if not others:
                free = free_disk_bytes(folder)
                raise CacheUnusable(
                    f"{needed / 1e9:.1f} GB would be stored, and half of the free disk is {MOST_DISK * free / 1e9:.1f} GB"
                )
            remove_folder(others.pop(0))
    except OSError as error:
        raise CacheUnusable(f"{folder.parent} cannot be cleared ({error.strerror})") from error


def _is_cache(path: Path) -> bool:
    """Return whether a folder is a cache of ours; one that the user gives may hold other things beside."""
    return _KEY.fullmatch(path.name) is not None and all(_OURS.fullmatch(entry.name) for entry in path.glob("*"))


def _remove_stale(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote, once nothing has touched it for long."""
    for left in folder.glob(".tmp-*"):
        touched = max((_used(path) for path in (left, *left.glob("*"))), default=0.0)
        if time.time() - touched > STALE_SECONDS:
            remove_folder(left) if left.is_dir() else left.unlink(missing_ok=True)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
