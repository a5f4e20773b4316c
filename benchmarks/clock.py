"""Time as the benchmarks take it: processor time of the process (all its threads), and the time on the wall."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """A reading of both clocks, in seconds. The processor's starts with the process."""

    cpu: float
    wall: float

    @staticmethod
    def now() -> Moment:
        """Return the present moment."""
        return Moment(time.process_time(), time.perf_counter())

    def since(self, earlier: Moment) -> dict[str, float]:
        """Return what passed since another moment."""
        return {"cpu": self.cpu - earlier.cpu, "wall": self.wall - earlier.wall}


class Laps:
    """When training began, and when each of its steps was done."""

    def __init__(self) -> None:
        self.began = Moment.now()
        self._steps: dict[int, Moment] = {}

    def begin(self) -> None:
        """Note that training begins."""
        self.began = Moment.now()
        self._steps = {}

    def step(self, number: int) -> None:
        """Note that a step is done; the first is 1."""
        self._steps[number] = Moment.now()

    @property
    def count(self) -> int:
        """How many steps are done."""
        return max(self._steps, default=0)

    def after(self, step: int = 0) -> dict[str, float]:
        """Return what passed from a step, or from the beginning, to the last step."""
        return self._steps[self.count].since(self._steps[step] if step else self.began)
