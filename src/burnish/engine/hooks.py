"""What happens between steps: log, evaluate, save, obey signals. Each hook decides by `state.step` whether it is due."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from typing import Any, TextIO

from burnish.engine.guard import StopSignal
from burnish.engine.loop import Job, State, StepResult
from burnish.engine.rates import finite, peak_memory_bytes
from burnish.errors import Stopped
from burnish.models.freeze import Thaw, set_training_mode
from burnish.run import RunFolder

#: Checkpoints by time are spaced out so far that the run waits for them at most this share of its time.
MOST_SAVING = 0.05
#: Steps between collections of Python's garbage, which the loop leaves alone otherwise.
SWEEP_EVERY = 200


class Log:
    """Writes a line of metrics.jsonl for every `every`-th step, and hands it to `show`.

    Args:
        folder: its metrics.jsonl is appended to; each line reaches the system before the next step.
        rows_per_epoch: to say how far through the data the run is.
        show: called with each step's line and the state; None while the run starts.
        flops_per_position: floating-point operations of training on one position.
        peak_flops: what the device does in a second at best; None: not known.
    """

    def __init__(
        self,
        folder: RunFolder,
        every: int,
        rows_per_epoch: int,
        show: Callable[[dict[str, Any], State], None],
        flops_per_position: float = 0.0,
        peak_flops: float | None = None,
    ):
        self.folder, self.every, self.rows_per_epoch, self.show = folder, every, rows_per_epoch, show
        self.flops_per_position, self.peak_flops = flops_per_position, peak_flops
        self.file: TextIO | None = None
        self.step = 0
        self.last = time.monotonic()

    def _rewind(self, step: int) -> None:
        """Drop the lines after `step`: the run starts there, or went back to it."""
        self.close()
        self.folder.truncate_log(step)
        self.file = open(self.folder.log, "a", encoding="utf-8")  # noqa: SIM115  (closed with the run)

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        if job.group.leads and (self.file is None or state.step < self.step):
            self._rewind(state.step)
        self.step = state.step
        if result is None:
            return
        state.seconds += elapsed
        line: dict[str, Any] = {
            "step": state.step,
            "loss": finite(result.loss),
            "lr": result.lr,
            "grad_norm": finite(result.grad_norm),
            "epoch": round(min(state.step * job.loader.batch, job.loader.total_rows) / self.rows_per_epoch, 4),
            "rows": result.rows,
            "targets": result.targets,
            "positions": result.positions,
            "padding": round(result.padding, 4),
            "seconds": round(elapsed, 4),
            "waited_seconds": round(result.waited, 4),
            "mfu": self._mfu(result.positions / job.group.size / max(elapsed, 1e-9)),
            "peak_memory_bytes": peak_memory_bytes(job.device),
        }
        if result.non_finite:
            line["non_finite"] = result.non_finite
        if state.step % self.every == 0 or result.non_finite or state.step == job.total_steps:
            self.write(line)
        self.show(line, state)

    def _mfu(self, rate: float) -> float | None:
        """Return the share of a device's best that the model's own operations take, at a rate of its positions a second."""
        return round(self.flops_per_position * rate / self.peak_flops, 4) if self.peak_flops else None

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; of several ranks, the leading one does."""
        if self.file is None:
            return
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()

    def pause(self) -> None:
        """Do not count the time since the last step as training."""
        self.last = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


class Evaluate:
    """Evaluates every `every` steps and at the end, keeps the best, and ends the run when patience runs out.

    Args:
        measure: returns the validation metrics of the model as it is at a step.
        metric: which one decides what is best.
        lower_is_better: whether smaller values of it are better.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[int], dict[str, float]],
        metric: str,
        lower_is_better: bool,
        patience: int | None,
        log: Log,
        keep_best: bool,
    ):
        self.every, self.measure, self.metric, self.patience = every, measure, metric, patience
        self.sign = -1 if lower_is_better else 1
        self.log, self.keep_best = log, keep_best

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        due = state.step > 0 and (state.step % self.every == 0 or state.step == job.total_steps)
        if not due or state.evaluated == state.step:
            return
        metrics = self.measure(state.step)
        state.evaluated = state.step
        value = metrics[self.metric]
        if state.best is None or self.sign * value > self.sign * state.best["value"]:
            state.best = {"metric": self.metric, "value": value, "step": state.step}
            state.stale = 0
        else:
            state.stale += 1
            if self.patience and state.stale >= self.patience:
                state.ended = f"no better {self.metric} in {self.patience} evaluations"
        self.log.write({"step": state.step, "evaluation": "validation", "metrics": metrics, "best": state.best})
        if self.keep_best and state.best["step"] == state.step:
            job.save(state)
        self.log.pause()


class Save:
    """Saves every `every_steps` steps or `every_seconds`, at the end, and removes what need not stay."""

    def __init__(self, every_steps: int | None, every_seconds: float, keep: int, log: Log, keep_best: bool):
        self.every_steps, self.every_seconds, self.keep, self.log = every_steps, every_seconds, keep, log
        self.keep_best = keep_best
        self.last, self.cost = time.monotonic(), 0.0
        self.saved: int | None = None
        self.began = False

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        if not self.began and state.step:
            self.saved = state.step  # just resumed from it
        self.began = True
        if self.every_steps:
            due = state.step % self.every_steps == 0 and state.step > 0
        else:
            # Clocks differ between ranks, and all have to hand over their part of the state: one of them decides.
            due = job.group.any(time.monotonic() - self.last >= max(self.every_seconds, self.cost / MOST_SAVING))
        first = state.step == 0 and job.on_non_finite == "rollback"
        if due or first or state.step == job.total_steps or state.ended:
            self._start(job, state)

    def _start(self, job: Job, state: State) -> None:
        """Save the state if it is not saved yet, and prune; the run waits only until the state is copied."""
        started = time.monotonic()
        if self.saved != state.step:
            job.save(state)
            self.saved = state.step
        best = state.best["step"] if self.keep_best and state.best else None
        if job.group.leads:
            job.writer.prune(self.keep, best)
        self.last = time.monotonic()
        self.cost = self.last - started
        self.log.pause()

    def now(self, job: Job, state: State) -> None:
        """Save the state if it is not saved yet, and return when it is durable."""
        self._start(job, state)
        job.writer.wait()


class Gradually:
    """Lets the topmost frozen layer train after every `every` steps, and at last what lies below the layers."""

    def __init__(self, thaw: Thaw, every: int):
        self.thaw, self.every = thaw, every
        self.stages: int | None = None

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        stages = state.step // self.every
        if stages != self.stages:
            self.stages = stages
            job.frozen = self.thaw.to(stages)
            set_training_mode(job.model, job.frozen)


def sweep(job: Job, state: State, result: StepResult | None) -> None:
    """Collect garbage now and then, between steps."""
    if result is not None and state.step % SWEEP_EVERY == 0:
        gc.collect()


class ObeySignals:
    """Saves and stops when a signal asked for it."""

    def __init__(self, signal: StopSignal, save: Save):
        self.signal, self.save = signal, save

    def __call__(self, job: Job, state: State, result: StepResult | None) -> None:
        if job.group.any(self.signal.asked is not None):
            self.save.now(job, state)
            raise Stopped(
                f"{self.signal.asked or 'stopped'}: saved at step {state.step}. The same command continues the run."
            )
