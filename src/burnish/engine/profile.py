"""Where the time of a step went: its parts, and the operators that took most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from burnish.engine.loop import Job, State, StepResult

#: Steps left alone at first (caches fill, kernels are made), and steps measured then.
WARM_UP, MEASURED = 5, 10
_OPERATORS = 12


class Profile:
    """Measures some steps soon after the start, and hands over what it found.

    Parts are the spans that loop and step mark with `span`; what lies between
    them is `rest`. Operators count only their own time, not that of those they call.

    Args:
        show: called once with the figures: `steps`, `seconds` a step, `parts` and `operators`, each a share of the time.
    """

    def __init__(self, show: Callable[[dict[str, Any]], None]):
        self.show = show
        self.first: int | None = None
        self.profiler: Any = None
        self.began = 0.0

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        if self.first is None:
            self.first = state.step + min(WARM_UP, max(0, job.total_steps - state.step - 1))
        if self.profiler is None and state.step == self.first and state.step < job.total_steps:
            from torch.profiler import profile

            self.profiler, self.began = profile(), time.monotonic()
            self.profiler.__enter__()
        elif self.profiler is not None and (state.step >= min(self.first + MEASURED, job.total_steps) or state.ended):
            seconds = time.monotonic() - self.began
            self.profiler.__exit__(None, None, None)
            found, self.profiler, steps = self.profiler, None, state.step - self.first
            self.first = -1
            if steps > 0:
                self.show(_summary(found, seconds, steps, job.device))


def _summary(profiler: Any, seconds: float, steps: int, device: str) -> dict[str, Any]:
    on_gpu = device.startswith("cuda")
    events = profiler.key_averages()
    spans = {e.key.removeprefix("burnish: "): e.cpu_time_total / 1e6 for e in events if e.key.startswith("burnish: ")}
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operators = {event.key: getattr(event, own) / 1e6 for event in events if not event.key.startswith("burnish: ")}
    most = sorted(operators.items(), key=lambda pair: -pair[1])[:_OPERATORS]
    total = sum(operators.values()) or 1.0
    parts = {name: value / seconds for name, value in spans.items()}
    parts["rest"] = max(0.0, 1 - sum(parts.values()))
    return {
        "steps": steps,
        "seconds": seconds / steps,
        "parts": {name: round(share, 4) for name, share in sorted(parts.items(), key=lambda pair: -pair[1])},
        "operators": {name: round(value / total, 4) for name, value in most},
    }
