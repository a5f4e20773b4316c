"""Checkpoints written while training goes on: what is saved is the moment of the save, and nothing is lost on the way."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from burnish.engine import checkpoint
from burnish.engine.checkpoint import Writer


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model": {"w": torch.full((40, 7), value), "turned": torch.full((3, 4), value).t(), "none": torch.empty(0, 2)},
        "optimizer": {"w/step": torch.tensor(value, dtype=torch.float64), "w/low": torch.full((3,), value).bfloat16()},
    }


def weights(folder: Path, step: int) -> float:
    path = checkpoint.path_of(folder, step)
    checkpoint.verify(path)
    return float(checkpoint.read(path, "model")["w"].mean())


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every write back until the event is set."""
    event = threading.Event()
    write = checkpoint._write

    def later(*arguments: Any) -> None:
        assert event.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write", later)
    return event


def test_the_moment_of_the_save_is_saved(tmp_path: Path, held: threading.Event) -> None:
    """Training goes on, and changes the weights, before a byte is written."""
    with Writer(tmp_path) as writer:
        live = tensors(1.0)
        writer.save(1, live, {"step": 1})
        writer.copied()
        for named in live.values():
            for value in named.values():
                value.fill_(2.0)
        assert checkpoint.steps(tmp_path) == []
        held.set()
        writer.wait()
        assert weights(tmp_path, 1) == 1.0
        copy = writer._copies["model", "w"].data_ptr()
        writer.save(2, live, {"step": 2})
        writer.copied()
        assert writer._copies["model", "w"].data_ptr() == copy, "the copies' memory is used again"
    assert weights(tmp_path, 2) == 2.0
    for stem, named in tensors(2.0).items():
        found = checkpoint.read(checkpoint.path_of(tmp_path, 2), stem)
        assert all(
            found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in named.items()
        )
    assert writer._copies == {}


def test_old_checkpoints_go_when_the_new_one_is_durable(tmp_path: Path, held: threading.Event) -> None:
    held.set()
    with Writer(tmp_path) as writer:
        writer.save(1, tensors(1.0), {})
        writer.wait()
        held.clear()
        writer.save(2, tensors(2.0), {})
        writer.prune(1, None)
        assert checkpoint.steps(tmp_path) == [1]
        held.set()
    assert checkpoint.steps(tmp_path) == [2]


def test_the_run_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes 0.2 s for each fsync: the first save returns at once, the second waits for the first."""
    monkeypatch.setattr(os, "fsync", lambda handle: time.sleep(0.2))
    began = time.monotonic()
    with Writer(tmp_path) as writer:
        writer.save(1, tensors(1.0), {})
        assert time.monotonic() - began < 0.2
        writer.save(2, tensors(2.0), {})
        assert time.monotonic() - began > 1
        assert checkpoint.steps(tmp_path) == [1]
    assert checkpoint.steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("short", [False, True], ids=["memory", "no memory"])
def test_short_of_memory_it_saves_at_once(
    tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """A copy needs memory, and training needs it again after that."""
    size = sum(value.nbytes for named in tensors(1.0).values() for value in named.values())
    monkeypatch.setattr(checkpoint, "free_memory_bytes", lambda: checkpoint.SPARE * size - short)
    writer = Writer(tmp_path)
    if short:
        held.set()
    writer.save(1, tensors(1.0), {})
    assert checkpoint.steps(tmp_path) == ([1] if short else [])
    assert (writer.reason is not None and "memory are free" in writer.reason) == short
    held.set()
    writer.prune(3, None)
    writer.wait()
    assert weights(tmp_path, 1) == 1.0


@pytest.mark.parametrize("noticed_by", ["save", "wait", "end"])
def test_a_failed_save_is_raised_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed_by: str) -> None:
    """A full disk: the older checkpoint stays, also where pruning was asked for, and nothing half-written."""
    with Writer(tmp_path) as writer:
        writer.save(1, tensors(1.0), {})

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_file", full)
        with pytest.raises(OSError, match="No space left"), writer:
            writer.save(2, tensors(2.0), {})
            writer.prune(1, 2)
            if noticed_by == "save":
                writer.save(3, tensors(3.0), {})
            elif noticed_by == "wait":
                writer.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]
    with writer:
        writer.save(2, tensors(2.0), {})
    assert weights(tmp_path, 2) == 2.0


def test_another_error_is_not_hidden_by_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_write_file", lambda *arguments: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(KeyError, match="the cause"), Writer(tmp_path) as writer:
        writer.save(1, tensors(1.0), {})
        raise KeyError("the cause")
    assert list(tmp_path.iterdir()) == []


def test_a_run_saves_the_same_bits_either_way(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint of a run that saves in the background, and copies slowly, is that of a run that saves at once."""
    import burnish
    from burnish.terminal import Terminal

    def run(name: str) -> dict[str, bytes]:
        found = burnish.train(
            "text-generation",
            terminal=Terminal(quiet=True),
            model={"preset": "gpt2-nano", "vocab_size": 300},
            data=str(text_file),
            train={"length": "5 steps", "batch": 4, "sequence": 24, "precision": "fp32", "evaluate_every": "2 steps"},
            checkpoint={"every": "1", "keep": 9},
            generate={"max_tokens": 2},
            run={"dir": str(tmp_path / name)},
        )
        return {
            f"{file.parent.name}/{file.name}": file.read_bytes()
            for file in (found.path / "checkpoints").glob("*/*.safetensors")
        }

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "free_memory_bytes", lambda: 0)
        at_once = run("at-once")
    copy = Writer._copy
    monkeypatch.setattr(Writer, "_copy", lambda *arguments: time.sleep(0.2) or copy(*arguments))
    assert len(at_once) == 10
    assert run("background") == at_once


def test_the_same_moment_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best step may also be one at which a save is due; after a way back, the same step is another moment."""
    written = []
    write = checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda *arguments: written.append(arguments[1]) or write(*arguments))
    with Writer(tmp_path) as writer:
        for state in ({"best": 1}, {"best": 1}, {"best": 2}):
            writer.save(1, tensors(1.0), state)
        writer.wait()
        writer.forget()
        writer.save(1, tensors(3.0), {"best": 2})
    assert written == [1, 1, 1]
    assert weights(tmp_path, 1) == 3.0


def test_files_are_safetensors(tmp_path: Path) -> None:
    """Every type, shapes without elements or dimensions, and views that do not lie in order."""
    types = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    draw = torch.Generator().manual_seed(0)
    named = {name: (torch.rand(3, 5, generator=draw) * 9).to(getattr(torch, name)) for name in types}
    named |= {
        "none": torch.empty(0, 4),
        "one": torch.tensor(3.0),
        "turned": named["bfloat16"].t(),
        "part": named["int64"][:, 2],
    }
    path = checkpoint.save(tmp_path, 1, {"model": named, "optimizer": {}}, {})
    checkpoint.verify(path)
    found = load_file(path / "model.safetensors")
    assert set(found) == set(named)
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in named.items())
    assert load_file(path / "optimizer.safetensors") == {}
