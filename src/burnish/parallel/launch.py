"""Starting the other processes of a run, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
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
        patience = 0.0  # the others write nothing, so that it does no harm to end them early
        try:
            while not all(ready(store, rank).exists() for rank in range(1, size)):
                if failed:
                    raise RuntimeError("a rank ended before the others met it")
                time.sleep(0.02)
            group = Ranks(0, size, store, device)
            try:
                yield group
                patience = _PATIENCE
            finally:
                group.leave()
        except RuntimeError as error:
            deadline = time.monotonic() + _PATIENCE
            while watch.is_alive() and not failed and time.monotonic() < deadline:
                time.sleep(0.02)
            if not failed:
                raise
            raise GuardError(_last_words(failed[0], children[failed[0] - 1], Path(folder))) from error
        finally:
            for child in children:
                _end(child, patience)


def ready(store: Path, rank: int) -> Path:
    """Return the file by which a rank says that it has built its model and will meet the others."""
    return store.with_name(f"ready-{rank}")


def _last_words(rank: int, child: subprocess.Popen, folder: Path) -> str:
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return f"Rank {rank} was ended by {name}, perhaps for want of memory. The same command continues the run."
    said = (folder / f"rank-{rank}.txt").read_text(errors="replace").strip().splitlines()
    return f"Rank {rank} ended with an error: {' / '.join(said[-3:])[-500:]}"


def _start(module: str, settings: Path, run: Path, store: Path, rank: int, size: int, threads: int) -> subprocess.Popen:
    command = [sys.executable, "-m", module, str(settings), str(run), str(store), str(rank), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(settings.with_name(f"rank-{rank}.txt"), "w") as said:
        # A session of its own: Ctrl-C reaches rank 0 only, which tells the others when to stop.
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)


def _watch(children: list[subprocess.Popen], failed: list[int]) -> None:
    """Note which ranks fail, in the order in which they do: the others only follow the first."""
    running = dict(enumerate(children, 1))
    while running:
        for rank, child in list(running.items()):
            if child.poll() is not None:
                del running[rank]
                if child.returncode != 0:
                    failed.append(rank)
        time.sleep(0.02)


def _end(child: subprocess.Popen, patience: float) -> None:
    """End a process: by itself within some seconds, else by force."""
    try:
        child.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
