"""Time and memory of one training run, taken by the same code on every side. Imports neither burnish nor torch."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clock import Moment


class Gauge:
    """Notes when training begins and when each step is done, and the most memory the process held in between.

    Args:
        untimed: first steps that count for the loss and the memory but not for the rate: they allocate and compile.
    """

    def __init__(self, untimed: int):
        self.untimed = untimed
        self.steps: list[Moment] = []
        self.begin()

    def begin(self) -> None:
        """Note the moment before the first step."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self.before = resident("VmRSS")
        self.peak = self.before
        self.events = [_event()]
        self.began = Moment.now()

    def step(self) -> None:
        """Note that a step is done; on an accelerator, that it will be once the work given so far is."""
        self.steps.append(Moment.now())
        self.peak = max(self.peak, resident("VmHWM"))
        self.events.append(_event())

    def result(self) -> dict[str, Any]:
        """Return what was noted.

        `train` is the time of the timed steps, `first` that from the call that trains (or resumes) to its first step,
        `start` that from the start of the process to the same step, imports and all.
        """
        first = self.steps[0]
        train = self.steps[-1].since(self.steps[self.untimed - 1] if self.untimed else self.began)
        memory = {"before": self.before, "peak": self.peak}
        if cuda := _cuda():
            cuda.synchronize()
            train["wall"] = self.events[self.untimed].elapsed_time(self.events[-1]) / 1000
            memory["accelerator"] = cuda.max_memory_allocated()
        age = time.time() - psutil.Process().create_time()
        return {
            "train": train,
            "first": first.since(self.began),
            "start": {"cpu": first.cpu, "wall": age - Moment.now().since(first)["wall"]},
            "memory": memory,
        }


def resident(name: str) -> int:
    """Return the bytes in memory of this process, now (VmRSS) or at most (VmHWM); 0 where the system does not say."""
    try:
        with open("/proc/self/status", "rb", buffering=0) as handle:
            found = handle.read().partition(name.encode() + b":")[2]
    except OSError:
        return 0
    return int(found.split(maxsplit=1)[0]) * 1024 if found else 0


def _cuda() -> Any:
    """Return torch's part for NVIDIA devices if this process uses one."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _event() -> Any:
    """Return a mark in the work of the accelerator, made when it gets there; None where there is none."""
    if (cuda := _cuda()) is None:
        return None
    event = cuda.Event(enable_timing=True)
    event.record()
    return event


def show(result: dict[str, Any]) -> None:
    """Print what one side measured, as the line that `benchmarks.children` reads."""
    print(json.dumps(result), flush=True)
