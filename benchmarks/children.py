"""Measurements in processes of their own, so that threads, caches and timings of one do not touch another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT


class ChildFailed(RuntimeError):
    """A measurement that came to no result, with the last lines of what it said."""


def run_child(module: str, *arguments: object, threads: int, python: Path = Path(sys.executable)) -> dict[str, Any]:
    """Return the JSON a module prints as its last line.

    Args:
        python: of the environment it runs in.

    Raises:
        ChildFailed: it ended with an error.
    """
    command = [str(python), "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise ChildFailed(f"{' '.join(command[2:])} ended with status {done.returncode}:\n{said}")
    return json.loads(lines[-1])
