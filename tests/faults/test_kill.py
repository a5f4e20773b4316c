"""kill -9: at random moments, and at every single file operation, a run ends bit-identical to an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from burnish.engine import checkpoint
from forks import forks
from helpers import CLASSIFY, COMMAND, LM, burnish, result_of


def _state(folder: Path) -> set[tuple]:
    """Return what tells whether anything in a run folder was changed; its log is only for people."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.name != "log.txt"]
    return {(path, stat.st_ino, not path.is_dir() and (stat.st_size, stat.st_mtime_ns)) for path, stat in found}


def test_killed_at_every_file_operation(text_file: Path, tmp_path: Path) -> None:
    """A2: every operation of a run with three saves, one of which removes an old checkpoint.

    The run stands still before each of its operations. What lies in its folder then is what a kill would leave; wherever
    that is not what the operation before would have left, a copy of it goes on to the end.
    """
    command = [
        *LM, "--data.train", text_file, "--train.length", "6 steps", "--checkpoint.every", "2", "--checkpoint.keep", "2",
        "--train.evaluate-every", "3", "--run.dir",
    ]  # fmt: skip
    whole, folder, killed = tmp_path / "whole", tmp_path / "run", tmp_path / "killed"
    assert burnish(*command, whole).returncode == 0
    expected = result_of(whole)
    operations, states, before = 0, 0, set()
    for _ in forks().operations(COMMAND, *command, folder, folder=folder):
        operations += 1
        if (state := _state(folder)) == before:
            continue
        before, states = state, states + 1
        shutil.copytree(folder, killed)
        committed = checkpoint.steps(killed / "checkpoints")
        assert all(checkpoint.verify(checkpoint.path_of(killed / "checkpoints", step)) for step in committed)
        done = burnish(*command, killed)
        assert done.returncode == 0, f"does not continue after a kill at operation {operations}: {done.stderr}"
        assert result_of(killed) == expected, f"differs after a kill at operation {operations}"
        left = [path for path in killed.rglob("*") if path.name.startswith((".tmp-", ".del-", ".old-"))]
        assert left == [], f"left behind after a kill at operation {operations}"
        shutil.rmtree(killed)
    assert result_of(folder) == expected
    assert 60 <= operations <= 400 and states >= 40


def _killed_at_random(command: list[object], folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    arguments = [sys.executable, "-m", "burnish", *map(str, command), "--run.dir", str(folder)]
    for _ in range(kills):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        before = checkpoint.steps(folder / "checkpoints")
        deadline = time.monotonic() + 120
        while checkpoint.steps(folder / "checkpoints") == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait()
    done = burnish(*command, "--run.dir", folder)
    assert done.returncode == 0, done.stderr


def test_killed_at_random_moments(text_file: Path, tmp_path: Path) -> None:
    """A1: five kills of real, fresh processes; dropout on, so randomness is resumed too."""
    command = [
        *LM, "--data.train", text_file, "--train.length", "120 steps", "--checkpoint.every", "5", "--train.dropout", "0.1",
    ]  # fmt: skip
    done = burnish(*command, "--run.dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    _killed_at_random(command, tmp_path / "killed", kills=5, seed=1)
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


def test_fine_tuning_killed_at_random_moments(reviews_file: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """The same for a pretrained encoder with frozen layers, its own dropout, and the best checkpoint kept."""
    command = [
        *CLASSIFY, "--model", tiny_bert, "--data.train", reviews_file, "--freeze.layers", "1", "--train.length", "4 epochs",
        "--checkpoint.every", "3", "--train.best", "accuracy", "--train.evaluate-every", "10",
    ]  # fmt: skip
    done = burnish(*command, "--run.dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    _killed_at_random(command, tmp_path / "killed", kills=2, seed=2)
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")
