"""A3: what is written becomes durable in the right order. kill -9 cannot show this: the page cache survives it."""

from __future__ import annotations

import builtins
import os
from pathlib import Path

import pytest
import torch

from burnish.engine import checkpoint
from burnish.run import write_json


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record fsync and rename, in order, by the path they concern; the real calls are made."""
    seen: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(handle: int) -> None:
        seen.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recorded_rename(old: Path, new: Path) -> None:
        seen.append(("rename", f"{old} -> {new}"))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    return seen


def _save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, {"model": {"w": torch.ones(3)}, "optimizer": {}}, {"step": step})


def test_order_of_a_save(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    """Files, then manifest, then folder, then rename, then parent."""
    path = _save(tmp_path, 1)
    kinds = [kind for kind, _ in calls]
    assert kinds == ["fsync"] * 5 + ["rename", "fsync"]
    names = [Path(text.split(" -> ")[0]).name for _, text in calls]
    assert set(names[:3]) == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert names[3] == "manifest.json"
    assert names[4].startswith(".tmp-step-000001")
    assert calls[5][1].endswith(str(path))
    assert calls[6][1] == str(tmp_path)


def test_old_checkpoints_go_last(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    """An older checkpoint is only touched after the new one is durable."""
    for step in (1, 2, 3):
        _save(tmp_path, step)
        checkpoint.prune(tmp_path, keep=1, best=1)
    commit = next(i for i, (kind, text) in enumerate(calls) if kind == "rename" and text.endswith("step-000003"))
    retired = next(i for i, (_, text) in enumerate(calls) if ".old-step-000002" in text)
    assert calls[commit + 1] == ("fsync", str(tmp_path))
    assert retired > commit + 1
    assert checkpoint.steps(tmp_path) == [1, 3]


def test_small_files_are_replaced_whole(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_json(tmp_path / "metrics.json", {"loss": 1.0})
    assert [kind for kind, _ in calls] == ["fsync", "rename", "fsync"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a save: the committed checkpoint stays, the half one goes."""
    _save(tmp_path, 1)
    opened = builtins.open

    def full(path, mode="r", *rest, **options):
        if str(path).endswith("manifest.json") and "w" in mode:
            raise OSError(28, "No space left on device", str(path))
        return opened(path, mode, *rest, **options)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(OSError, match="No space left"):
        _save(tmp_path, 2)
    monkeypatch.undo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000001"]
    checkpoint.verify(tmp_path / "step-000001")
