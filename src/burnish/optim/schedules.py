"""Learning rate schedules: factors of the peak rate as functions of progress, so the same on any number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable

from burnish.config import ScheduleSettings
from burnish.errors import unknown
from burnish.units import share

#: name -> f(t, settings): the factor at progress `t` in [0, 1] after the warm-up; each starts at 1.
SCHEDULES: dict[str, Callable[[float, ScheduleSettings], float]] = {}


def _schedule(name: str) -> Callable:
    def register(function: Callable[[float, ScheduleSettings], float]) -> Callable[[float, ScheduleSettings], float]:
        SCHEDULES[name] = function
        return function

    return register


@_schedule("constant")
def constant(t: float, settings: ScheduleSettings) -> float:
    """Stay at the peak."""
    return 1.0


@_schedule("linear")
def linear(t: float, settings: ScheduleSettings) -> float:
    """Fall by the same amount each step."""
    return 1 - (1 - settings.final) * t


@_schedule("exponential")
def exponential(t: float, settings: ScheduleSettings) -> float:
    """Fall by the same share each step, to `final` (1 % if it is 0: an exponential never reaches zero)."""
    return (settings.final or 0.01) ** t


@_schedule("cosine")
def cosine(t: float, settings: ScheduleSettings) -> float:
    """Half a cosine wave. Source: Loshchilov and Hutter 2017, equation 5, without restarts."""
    return settings.final + (1 - settings.final) * (1 + math.cos(math.pi * t)) / 2


@_schedule("polynomial")
def polynomial(t: float, settings: ScheduleSettings) -> float:
    """A power of what is left of the run."""
    return settings.final + (1 - settings.final) * (1 - t) ** settings.power


@_schedule("wsd")
def warmup_stable_decay(t: float, settings: ScheduleSettings) -> float:
    """Stay at the peak, then fall linearly in the last `decay` of the run. Source: Hu et al. 2024 (MiniCPM), section 4."""
    decay = share(settings.decay)
    return 1.0 if decay == 0 or t <= 1 - decay else 1 - (1 - settings.final) * (t - (1 - decay)) / decay


@_schedule("inverse-sqrt")
def inverse_sqrt(t: float, settings: ScheduleSettings) -> float:
    """Fall as one over the root of the step. Source: Vaswani et al. 2017, equation 3. `factor` scales `t` to warm-ups."""
    return 1 / math.sqrt(1 + t)


class Schedule:
    """The factor of the peak learning rate at each step.

    Args:
        settings: the `schedule` group.
        total_steps: steps of the run.
        warmup_steps: steps in which the factor rises linearly from zero; step 0 already moves.

    Raises:
        UserError: no schedule has that name.
    """

    def __init__(self, settings: ScheduleSettings, total_steps: int, warmup_steps: int):
        if settings.name not in SCHEDULES:
            raise unknown("schedule", settings.name, SCHEDULES)
        self.settings, self.total, self.warmup = settings, total_steps, min(warmup_steps, max(total_steps - 1, 0))

    def factor(self, step: int) -> float:
        """Return the factor for step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        after = step - self.warmup
        if self.settings.name == "inverse-sqrt":  # measured in warm-ups, as in the paper
            return inverse_sqrt(after / max(self.warmup, 1), self.settings)
        return SCHEDULES[self.settings.name](after / max(self.total - self.warmup - 1, 1), self.settings)

    def preview(self, width: int = 60) -> str:
        """Return the curve as a line of block characters."""
        marks = " ▁▂▃▄▅▆▇█"
        steps = [round(i * (self.total - 1) / max(width - 1, 1)) for i in range(min(width, self.total))]
        return "".join(marks[round(self.factor(step) * (len(marks) - 1))] for step in steps)
