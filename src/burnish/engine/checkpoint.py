"""Checkpoints: a folder that appears by one rename, with a manifest of sizes and sha256; safetensors and JSON only.

The order of effects of a save is what makes it safe: write and fsync every file, then the manifest, then the folder;
rename; fsync the parent; only then remove older checkpoints. Which checkpoint is the newest is read from the folders
themselves, never from a pointer that could be moved too early.

A run waits for none of it (`Writer`): a thread copies the state while the next gradient is computed, and writes it while
training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from burnish.env import free_memory_bytes
from burnish.errors import GuardError, UserError
from burnish.run import fsync_dir, remove_folder
from burnish.units import readable_bytes

_NAME = re.compile(r"step-(\d{6,})")
FORMAT = 1

#: A copy of the state is made only if this many times its size are free: training needs memory again after it.
SPARE = 2


class Damaged(Exception):
    """A checkpoint that must not be used, with the file and the reason."""


def digest(named: Iterable[tuple[str, Any]]) -> str:
    """Return what tells tensors from others: a hash of their names, types, shapes and bytes."""
    import torch

    content = xxhash.xxh3_128()
    for name, value in named:
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def save(folder: Path, step: int, tensors: dict[str, dict[str, Any]], state: dict[str, Any]) -> Path:
    """Commit a checkpoint of `step` in `folder` and return its path.

    Args:
        tensors: file stem to named tensors; each becomes `STEM.safetensors`.
        state: everything else, as JSON.
    """
    target = folder / f"step-{step:06d}"
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        _write(temporary, step, tensors, state)
        if target.exists():  # a damaged one that a fallback passed over, or the same step saved again
            retire(target)
        os.rename(temporary, target)
    finally:
        remove_folder(temporary)  # only there if something failed, such as a full disk
    fsync_dir(folder)
    return target


def _write(temporary: Path, step: int, tensors: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
    parts = {f"{stem}.safetensors": _safetensors(named) for stem, named in tensors.items()}
    parts["state.json"] = iter([json.dumps(state, indent=1, allow_nan=False).encode()])
    files = {name: _write_file(temporary / name, parts[name]) for name in sorted(parts)}
    manifest = {"format": FORMAT, "step": step, "files": files}
    _write_file(temporary / "manifest.json", [json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1).encode()])
    fsync_dir(temporary)


def _write_file(path: Path, parts: Iterable[Any]) -> dict[str, Any]:
    """Write the parts to a durable file; return its size and sha256, so that it need not be read again."""
    size, digest = 0, hashlib.sha256()
    with open(path, "wb") as handle:
        for part in parts:
            handle.write(part)
            digest.update(part)
            size += len(part)
        handle.flush()
        os.fsync(handle.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


#: How safetensors calls the types.
_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def _safetensors(named: dict[str, Any]) -> Iterator[Any]:
    """Yield the bytes of a safetensors file: the header's length, the header, the tensors without a gap.

    They are handed out where they lie, so that neither a copy is made nor the interpreter held up while they are written.

    Source: https://github.com/huggingface/safetensors#format
    """
    names = sorted(named, key=lambda name: (-named[name].element_size(), name))  # larger types first: all are aligned
    header, end = {}, 0
    for name in names:
        value, start = named[name], end
        end += value.numel() * value.element_size()
        dtype = _TYPES[str(value.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield memoryview(_bytes(named[name].detach().cpu().contiguous()))


def _bytes(value: Any) -> Any:
    """Return the numpy array of the bytes of a contiguous tensor, in place."""
    import torch

    return value.reshape(-1).view(torch.uint8).numpy()


class Writer:
    """Writes the checkpoints of a run in the background, one at a time and in order.

    `save` returns at once. A thread copies the tensors, which must not change until `copied` returns, and writes the
    copies while they do. What goes wrong there is raised by the next `save` or `wait`. When memory is too short for
    copies, `save` itself writes, and `reason` says why. As a context it waits at the end, however the block ends.

    Args:
        folder: where the checkpoints go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reason: str | None = None
        self._copies: dict[tuple[str, str], Any] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[Future[Any]] = []
        self._copied = threading.Event()
        self._copied.set()
        self._saved: tuple[int, dict[str, Any]] | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
        """Commit a checkpoint of `step`; the one before is waited for. Arguments are those of `checkpoint.save`.

        The same step in the same state is not saved twice in a row.

        Raises:
            OSError: this save or the one before could not be written.
        """
        if self._saved == (step, state):
            return
        self.wait()
        missing = sum(value.nbytes for key, value in _flat(tensors) if not _alike(self._copies.get(key), value))
        free = free_memory_bytes() if missing else 0
        if free < SPARE * missing:
            self.reason = (
                f"{readable_bytes(free)} of memory are free, {readable_bytes(SPARE * missing)} are needed to save in the "
                "background"
            )
            save(self.folder, step, tensors, state)
        else:
            self.reason = None
            self._copied.clear()
            self._submit(lambda: save(self.folder, step, self._copy(tensors), state))
        self._saved = (step, state)

    def prune(self, keep: int, best: int | None) -> None:
        """Call `checkpoint.prune` when what is being saved is durable; not if that fails."""
        before = list(self._pending)
        if before:
            self._submit(lambda: None if any(one.exception() for one in before) else prune(self.folder, keep, best))
        else:
            prune(self.folder, keep, best)

    def copied(self) -> None:
        """Return when the tensors of the last save may change."""
        self._copied.wait()

    def wait(self) -> None:
        """Return when everything is durable.

        Raises:
            OSError: it could not be written; nothing half-written is left.
        """
        while self._pending:
            try:
                self._pending[0].result()
            except Exception:
                self._saved = None
                raise
            finally:
                if self._pending[0].done():  # else a signal ended the waiting, not the writing
                    self._pending.pop(0)

    def forget(self) -> None:
        """Take the next save for a new one, as after the state was put back."""
        self._saved = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the save under way and give the copies' memory back; raises only if nothing else was raised."""
        try:
            if kind is None:
                self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            self._executor, self._pending, self._copies = None, [], {}

    def _submit(self, work: Callable[[], Any]) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending.append(self._executor.submit(work))

    def _copy(self, tensors: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return copies in the CPU's memory; that of the last save's is used again, which is faster than new memory."""
        try:
            copies: dict[tuple[str, str], Any] = {}
            for key, value in _flat(tensors):
                copy: Any = self._copies.get(key)
                copies[key] = copy if _alike(copy, value) else _room_for(value)
                if value.device.type == "cpu" and value.is_contiguous():
                    np.copyto(_bytes(copies[key]), _bytes(value.detach()))  # torch would take training's threads for it
                else:
                    copies[key].copy_(value.detach())
            self._copies = copies
            return {stem: {name: copies[stem, name] for name in named} for stem, named in tensors.items()}
        finally:
            self._copied.set()


def _flat(tensors: dict[str, dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Any]]:
    for stem, named in tensors.items():
        for name, value in named.items():
            yield (stem, name), value


def _alike(copy: Any, value: Any) -> bool:
    return copy is not None and copy.shape == value.shape and copy.dtype == value.dtype


def _room_for(value: Any) -> Any:
    """Return memory for a copy of a tensor, not filled; page-locked for a GPU's, which is copied faster so."""
    import torch

    if value.is_cuda or not value.nbytes:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return torch.from_numpy(np.empty(value.nbytes, dtype=np.uint8)).view(value.dtype).view(value.shape)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def steps(folder: Path) -> list[int]:
    """Return the steps of the committed checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match.group(1)) for entry in folder.iterdir() if (match := _NAME.fullmatch(entry.name)))


def path_of(folder: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return folder / f"step-{step:06d}"


def verify(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state after checking every byte of it.

    Raises:
        Damaged: something is missing, added, cut or changed.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found, listed = {entry.name for entry in path.iterdir()}, set(manifest["files"])
        if manifest.get("format") != FORMAT:
            raise Damaged(f"{path}: written in format {manifest.get('format')}; this burnish reads format {FORMAT}")
        if manifest.pop("sha256") != _digest(manifest):
            raise Damaged(f"{path}/manifest.json: was changed")
        if path_of(path.parent, manifest["step"]) != path:
            raise Damaged(f"{path}/manifest.json: belongs to step {manifest['step']}")
        if extra := found - listed - {"manifest.json"}:
            raise Damaged(f"{path}/{min(extra)}: is not in the manifest")
        for name, expected in manifest["files"].items():
            if name not in found:
                raise Damaged(f"{path}/{name}: is missing")
            if (size := (path / name).stat().st_size) != expected["size"]:
                raise Damaged(f"{path}/{name}: has {size} bytes, the manifest says {expected['size']}")
            with open(path / name, "rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != expected["sha256"]:
                    raise Damaged(f"{path}/{name}: its content was changed (sha256 differs)")
        return json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: cannot be read ({error or type(error).__name__})") from error


def read(path: Path, stem: str) -> dict[str, Any]:
    """Return the tensors of `STEM.safetensors` of a verified checkpoint."""
    from safetensors.torch import load_file

    return load_file(path / f"{stem}.safetensors")


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, and why each newer one is not. None if there is no checkpoint.

    Raises:
        GuardError: there are checkpoints, and every one is damaged.
    """
    problems = []
    for step in reversed(steps(folder)):
        path = path_of(folder, step)
        try:
            verify(path)
            return path, problems
        except Damaged as error:
            problems.append(str(error))
    if problems:
        raise GuardError(
            f"{folder}: every checkpoint is damaged ({'; '.join(problems[:3])}). To start again, give --run.resume never."
        )
    return None, []


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the `keep` newest checkpoints and the one of step `best`."""
    for step in steps(folder)[:-keep]:
        if step != best:
            retire(path_of(folder, step))


def retire(path: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it looks like a whole one."""
    gone = path.with_name(f".old-{path.name}-{os.getpid()}")
    os.rename(path, gone)
    remove_folder(gone)


def chosen(text: str) -> Path:
    """Return the checkpoint a user named, checked.

    Raises:
        UserError: it is none, or it is damaged; a named checkpoint never falls back to another.
    """
    path = Path(text)
    if not path.is_dir() or _NAME.fullmatch(path.name) is None:
        raise UserError(
            f"run.resume: {text!r} is no checkpoint folder; write auto, never, or RUN/checkpoints/step-000500."
        )
    try:
        verify(path)
    except Damaged as error:
        raise UserError(f"run.resume: {error}. Choose another checkpoint, or auto for the newest good one.") from error
    return path
