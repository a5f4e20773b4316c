"""Signals save and exit 75; two runs never share a folder; a full disk stops with exit code 3."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from burnish.engine import checkpoint
from helpers import LM, burnish, result_of


def _started(command: list[object], folder: Path, **options: object) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "burnish", *map(str, command), "--run.dir", str(folder)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, **options
    )


def _wait_for_steps(folder: Path, process: subprocess.Popen, lines: int = 5) -> None:
    deadline = time.monotonic() + 120
    log = folder / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_saves_and_exits_75(text_file: Path, tmp_path: Path) -> None:
    """One run is stopped twice and goes on; it ends like one that nothing stopped."""
    command = [*LM, "--data.train", text_file, "--train.length", "150 steps", "--checkpoint.every", "1000"]
    folder, step = tmp_path / "stopped", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = _started(command, folder)
        _wait_for_steps(folder, process, step + 5)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        assert f"{number.name}: saved at step" in errors
        assert not step or f"continuing after step {step}" in said
        step = checkpoint.steps(folder / "checkpoints")[-1]
    done = burnish(*command, "--run.dir", folder)
    assert done.returncode == 0 and f"continuing after step {step}" in done.stdout
    assert burnish(*command, "--run.dir", tmp_path / "whole").returncode == 0
    assert result_of(folder) == result_of(tmp_path / "whole")


def test_a_folder_in_use_is_refused(text_file: Path, tmp_path: Path) -> None:
    command = [*LM, "--data.train", text_file, "--train.length", "3000 steps"]
    process = _started(command, tmp_path / "run")
    try:
        _wait_for_steps(tmp_path / "run", process)
        second = burnish(*command, "--run.dir", tmp_path / "run")
        assert second.returncode == 2
        assert f"in use by process {process.pid}" in second.stderr
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_exhausted_memory_is_a_guards_sentence(tmp_path: Path) -> None:
    """A real allocation that no machine can make."""
    import torch

    from burnish.engine.guard import resources
    from burnish.errors import GuardError

    with pytest.raises(GuardError, match=r"Out of memory.*--train\.micro-batch"), resources(tmp_path):
        torch.empty(2**50)


def test_a_limit_on_file_size_stops_with_exit_code_3(text_file: Path, tmp_path: Path) -> None:
    """Stands for a full disk, without needing one: no file may grow beyond 1 MB, the weights are 3."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    command = [*LM, "--data.train", text_file, "--train.length", "20 steps", "--checkpoint.every", "5"]
    process = _started(command, tmp_path / "run", preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "free" in errors and "Traceback" not in errors
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))
    done = burnish(*command, "--run.dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
