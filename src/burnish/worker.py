"""One of the other processes of a run: `python -m burnish.worker CONFIG RUN STORE RANK SIZE`, started by rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(settings: Path, run: Path, store: Path, rank: int, size: int) -> None:
    """Train together with the others from the plan that rank 0 wrote, and end with them."""
    import torch

    from burnish.config import config_class, parse
    from burnish.engine.guard import StopSignal
    from burnish.parallel.group import Ranks
    from burnish.parallel.launch import ready
    from burnish.run import RunFolder
    from burnish.session import Session
    from burnish.task import find_task
    from burnish.terminal import Terminal

    values = json.loads(settings.read_text(encoding="utf-8"))
    task = find_task(values["task"]["name"])
    config = parse(values, config_class(task.Settings), str(settings))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    session = Session(config, task, RunFolder(run), Terminal(quiet=True))
    session.prepare()
    session.build()
    ready(store, rank).touch()
    group = Ranks(rank, size, store, session.plan.device)
    try:
        session.train(StopSignal(), group)
    finally:
        group.leave()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    paths, numbers = [Path(text) for text in arguments[:3]], [int(text) for text in arguments[3:]]
    main(paths[0], paths[1], paths[2], numbers[0], numbers[1])
