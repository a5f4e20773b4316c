"""A fork server for fault trials, one per worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Trial = Callable[..., dict[str, int]]


@pytest.fixture(scope="session")
def trial() -> Iterator[Trial]:
    """Run the command line in a forked child: `trial(folder, *arguments, kill_at=None)` gives status and operations."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin and server.stdout

    def run(folder: Path, *arguments: object, kill_at: int | None = None) -> dict[str, int]:
        args = [*map(str, arguments), "--run.dir", str(folder)]
        server.stdin.write(json.dumps({"args": args, "root": str(folder), "kill_at": kill_at}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(timeout=30)
