"""Starting the other processes of a run, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from burnish.errors import GuardError
from burnish.parallel.group import Group, Ranks

#: Seconds a process gets to end by itself.
_PATIENCE = 20


@contextmanager
def ranks(size: int, module: str, config: str, run: Path, device: str, threads: int) -> Iterator[Group]:
    """Start `size - 1` processes beside this one, which is rank 0, and end them all with the block.

    Args:
        module: what the others run, as `python -m MODULE CONFIG RUN STORE RANK SIZE`.
        config: the run's settings as JSON.
        run: the run's folder; it holds the plan.
        threads: CPU threads of each process.

    Raises:
        GuardError: one of them ended with an error, with the last lines it said.
    """
    if size == 1:
        yield Group()
        return
    with tempfile.TemporaryDirectory(prefix="burnish-") as folder:
        settings, store = Path(folder) / "config.json", Path(folder) / "store"
        settings.write_text(config, encoding="utf-8")
        children = [_start(module, settings, run, store, rank, size, threads) for rank in range(1, size)]
        failed: list[int] = []
        watch = threading.Thread(target=_watch, args=(children, failed), daemon=True)
        watch.start()
        try:
            group = Ranks(0, size, store, device)
            try:
                yield group
            finally:
                group.leave()
        except RuntimeError as error:
            watch.join(timeout=2)
            if not failed:
                raise
            said = (Path(folder) / f"rank-{failed[0]}.txt").read_text(errors="replace").strip().splitlines()
            raise GuardError(f"Rank {failed[0]} ended with an error: {' / '.join(said[-3:])[-500:]}") from error
        finally:
            for child in children:
                _end(child)


def _start(module: str, settings: Path, run: Path, store: Path, rank: int, size: int, threads: int) -> subprocess.Popen:
    command = [sys.executable, "-m", module, str(settings), str(run), str(store), str(rank), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(settings.with_name(f"rank-{rank}.txt"), "w") as said:
        # A session of its own: Ctrl-C reaches rank 0 only, which tells the others when to stop.
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)


def _watch(children: list[subprocess.Popen], failed: list[int]) -> None:
    for rank, child in enumerate(children, 1):
        if child.wait() != 0:
            failed.append(rank)


def _end(child: subprocess.Popen) -> None:
    try:
        child.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
