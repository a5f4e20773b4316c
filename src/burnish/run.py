"""The run folder: its files, its lock, and durable writing.

RUN/  config.yaml  environment.json  plan.json  metrics.jsonl  log.txt  rejects.jsonl
      reader/ (tokenizer or image processor)  checkpoints/step-000500/  model/
      figures.json  report.html  card.md  metrics.json   (metrics.json last: it says that the run is finished)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from burnish.errors import UserError, nearest


def fsync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, at any moment and after a power cut, it is the old one or the new one, whole.

    Bytes of a file's name that are no UTF-8 are written as `\\udcff`, as JSON has them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as handle:
        handle.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(temporary, path)
    fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused rather than written."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def replace_folder(built: Path, target: Path) -> None:
    """Put the finished folder `built` at `target`, replacing what stood there; its files are made durable first.

    A kill between the two renames leaves only the old folder's retired name: whoever needs `target` builds it again.
    """
    for folder, _, names in os.walk(built):
        for name in names:
            with open(Path(folder) / name, "rb") as handle:
                os.fsync(handle.fileno())
        fsync_dir(Path(folder))
    retired = target.with_name(f".old-{target.name}")
    remove_folder(retired)
    if target.exists():
        os.rename(target, retired)
    os.rename(built, target)
    fsync_dir(target.parent)
    remove_folder(retired)


def save_whole(thing: Any, folder: Path) -> None:
    """Let a tokenizer or processor write itself to `folder`, whole or not at all."""
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    remove_folder(temporary)
    temporary.mkdir(parents=True)
    try:
        thing.save_pretrained(str(temporary))
        replace_folder(temporary, folder)
    finally:
        remove_folder(temporary)


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there."""
    if path.exists():
        shutil.rmtree(path)


def home_path(name: str | os.PathLike[str]) -> Path:
    """Return a name as a path, `~` as the home folder; of a user that there is not it stays as it is."""
    return Path(os.path.expanduser(name))


def refuse_unreadable(path: Path, name: str) -> None:
    """Refuse a folder whose files this user may not list or open.

    Raises:
        UserError: it is one.
    """
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{name}: the folder cannot be read (permission denied); `ls -ld` shows who may.")


def refuse_missing(name: str) -> None:
    """Refuse the name of a run or a model that cannot be a Hub id and is no folder; one beside other runs is meant as one.

    Raises:
        UserError: with the nearest name that is there; or it is a folder that cannot be read.
    """
    path = home_path(name)
    refuse_unreadable(path, name)
    beside_runs = path.parent != Path(".") and os.path.isdir(path.parent) and any(path.parent.glob("*/config.yaml"))
    if not os.path.exists(path) and (name.startswith((".", "/", "~")) or name.count("/") > 1 or beside_runs):
        raise UserError(f"{name}: no such folder.{nearest_beside(name)}")


def nearest_beside(name: str) -> str:
    """Return the nearest name in the folder where this one would be, as words."""
    path = home_path(name)
    with suppress(OSError):
        return nearest(path.name, os.listdir(path.parent))
    return ""


class RunFolder:
    """A run's folder on disk. Reading needs no lock; writing happens inside `locked()`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def wanted(cls, name: str) -> RunFolder:
        """Return the folder that `run.dir` names.

        Raises:
            UserError: there can be none of that name.
        """
        folder = cls(home_path(name))
        if os.path.isfile(folder.path):
            raise UserError(f"run.dir: {folder} is a file; give a folder.")
        if name.startswith("~") and folder.path == Path(name):
            raise UserError(f"run.dir: {name}: there is no such user; give a folder.")
        refuse_unreadable(folder.path, f"run.dir: {folder}")
        return folder

    def __getattr__(self, name: str) -> Path:
        try:
            return self.path / _FILES[name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether a run was ever started here."""
        return os.path.isfile(self.config)

    @property
    def is_finished(self) -> bool:
        """Whether the run here came to its end."""
        return os.path.isfile(self.metrics)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system frees it when the process ends, however it ends.

        Raises:
            UserError: another process is using the folder, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.lock, "a+")  # noqa: SIM115  (closed below)
        except OSError as error:
            raise UserError(
                f"run.dir: {self} cannot be written ({error.strerror}). Give a folder that can with --run.dir."
            ) from error
        with lock as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise UserError(
                    f"{self}: the run folder is in use by process {owner}. Wait for it, or give another --run.dir."
                ) from None
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for pattern in (".tmp-*", ".old-*", "checkpoints/.tmp-*", "checkpoints/.old-*"):
            for entry in self.path.glob(pattern):
                remove_folder(entry) if entry.is_dir() else entry.unlink()

    def read_json(self, path: Path) -> Any:
        """Return the JSON in a file of the run.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Is {self} a burnish run?") from error

    def set_aside(self) -> Path:
        """Give the folder another name, so that a new run can start under this one. Returns the new name."""
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}-previous-{number}")).exists():
            number += 1
        os.rename(self.path, kept)
        return kept

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a line that is torn or foreign is left out."""
        if not self.log.is_file():
            return []
        found = (_log_line(text) for text in self.log.read_bytes().splitlines())
        return [line for line in found if line is not None]

    def truncate_log(self, step: int) -> None:
        """Drop the lines after `step`, and a torn one at the end: a continued run writes them again."""
        if not self.log.is_file():
            return
        content = self.log.read_bytes()
        end = content.rfind(b"\n") + 1
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            line = _log_line(content[start:end])
            if line is not None and line["step"] <= step:
                break
            end = start
        if end < len(content):
            os.truncate(self.log, end)


def _log_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None if it is torn or foreign."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None


_FILES = {
    "config": "config.yaml",
    "environment": "environment.json",
    "plan": "plan.json",
    "log": "metrics.jsonl",
    "text_log": "log.txt",
    "rejects": "rejects.jsonl",
    "reader": "reader",
    "checkpoints": "checkpoints",
    "compiled": "compiled",
    "model": "model",
    "figures": "figures.json",
    "profile": "profile.json",
    "report": "report.html",
    "card": "card.md",
    "metrics": "metrics.json",
    "lock": ".burnish-lock",
}


def folder_name(text: str) -> str:
    """Return `text` as a safe folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80] or "run"
