"""A10: a damaged checkpoint is found before any tensor reaches the model, and passed over."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from burnish.engine import checkpoint
from burnish.errors import UserError
from helpers import LM, burnish, result_of


def _save(folder: Path, step: int) -> Path:
    generator = torch.Generator().manual_seed(step)
    tensors = {"model": {"w": torch.randn(50, 7, generator=generator)}, "optimizer": {"w/m": torch.randn(9)}}
    return checkpoint.save(folder, step, tensors, {"step": step, "best": None})


def _mutants(draw: random.Random) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield 60 ways to damage a checkpoint folder."""
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    for name in files:
        for length in (0, 1, -1, 0.5):

            def cut(path: Path, name: str = name, length: float = length) -> None:
                data = (path / name).read_bytes()
                end = length if length in (0, 1, -1) else int(len(data) * length)
                (path / name).write_bytes(data[: int(end)])

            yield f"{name} cut to {length}", cut

        def lost(path: Path, name: str = name) -> None:
            (path / name).unlink()

        yield f"{name} lost", lost
        for _ in range(9):

            def flip(path: Path, name: str = name, where: float = draw.random(), bit: int = draw.randrange(8)) -> None:
                data = bytearray((path / name).read_bytes())
                data[int(where * len(data))] ^= 1 << bit
                (path / name).write_bytes(data)

            yield f"{name} bit flipped", flip

    def extra(path: Path) -> None:
        (path / "model-2.safetensors").write_bytes(b"x")

    yield "extra file", extra

    def swapped(path: Path) -> None:
        shutil.copy(path.parent / "step-000001" / "model.safetensors", path / "model.safetensors")

    yield "weights of another step", swapped

    def foreign(path: Path) -> None:
        shutil.rmtree(path)
        shutil.copytree(path.parent / "step-000001", path)

    yield "checkpoint of another step under this name", foreign

    def empty(path: Path) -> None:
        shutil.rmtree(path)
        path.mkdir()

    yield "empty folder", empty


@pytest.mark.parametrize(("name", "damage"), [*_mutants(random.Random(0))])
def test_every_mutant_is_found(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    damage(path)
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    if json.loads(before["manifest.json"]) == _parsed(after.get("manifest.json")) and {
        **before,
        "manifest.json": b"",
    } == {
        **after,
        "manifest.json": b"",
    }:
        pytest.fail("the mutant changes nothing")
    with pytest.raises(checkpoint.Damaged, match="step-000002"):
        checkpoint.verify(path)
    newest, problems = checkpoint.newest(tmp_path)
    assert newest == tmp_path / "step-000001"
    assert len(problems) == 1
    with pytest.raises(UserError, match=r"run\.resume"):
        checkpoint.chosen(str(path))


def _parsed(data: bytes | None) -> object:
    try:
        return json.loads(data or b"")
    except ValueError:
        return None


def test_a_run_goes_on_from_the_newest_good_one(text_file: Path, tmp_path: Path) -> None:
    """The command says which checkpoint it passed over and why, and ends like a run without damage."""
    command = [
        *LM,
        "--data.train",
        text_file,
        "--train.length",
        "9 steps",
        "--checkpoint.every",
        "3",
        "--checkpoint.keep",
        "3",
        "--train.evaluate-every",
        "9 steps",
    ]
    folder = tmp_path / "damaged"
    assert burnish(*command, "--run.dir", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "metrics.json").unlink()  # the run did not reach its end
    weights = folder / "checkpoints" / "step-000009" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    done = burnish(*command, "--run.dir", folder)
    assert done.returncode == 0, done.stderr
    assert "step-000009/model.safetensors: its content was changed" in done.stdout
    assert "continuing after step 6 of 9" in done.stdout
    assert result_of(folder) == result_of(tmp_path / "whole")


def test_a_named_checkpoint_never_falls_back(text_file: Path, tmp_path: Path) -> None:
    command = [
        *LM,
        "--data.train",
        text_file,
        "--train.length",
        "4 steps",
        "--checkpoint.every",
        "2",
        "--checkpoint.keep",
        "9",
        "--run.dir",
        tmp_path / "r",
    ]
    assert burnish(*command).returncode == 0
    path = tmp_path / "r" / "checkpoints" / "step-000002"
    (path / "state.json").write_text("{}")
    (tmp_path / "r" / "metrics.json").unlink()
    done = burnish(*command, "--run.resume", path)
    assert done.returncode == 2
    assert "state.json" in done.stderr and "Traceback" not in done.stderr
