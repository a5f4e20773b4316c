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
