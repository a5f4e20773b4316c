"""Checkpoints: a folder that appears by one rename, with a manifest of sizes and sha256; safetensors and JSON only.

The order of effects of a save is what makes it safe: write and fsync every file, then the manifest, then the folder;
rename; fsync the parent; only then remove older checkpoints. Which checkpoint is the newest is read from the folders
themselves, never from a pointer that could be moved too early.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from burnish.errors import GuardError, UserError
from burnish.run import fsync_dir, remove_folder

_NAME = re.compile(r"step-(\d{6,})")
FORMAT = 1


class Damaged(Exception):
    """A checkpoint that must not be used, with the file and the reason."""


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
    from safetensors.torch import save_file

    for stem, named in tensors.items():
        save_file(
            {name: value.detach().contiguous() for name, value in named.items()}, temporary / f"{stem}.safetensors"
        )
    (temporary / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
    files = {}
    for file in sorted(temporary.iterdir()):
        with open(file, "rb") as handle:
            files[file.name] = {
                "size": file.stat().st_size,
                "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
            }
            os.fsync(handle.fileno())
    manifest = {"format": FORMAT, "step": step, "files": files}
    with open(temporary / "manifest.json", "w") as handle:
        json.dump({**manifest, "sha256": _digest(manifest)}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    fsync_dir(temporary)


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
