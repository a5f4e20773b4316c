"""The training loop. The order of effects is the order of lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from burnish.data.loader import Loader, collate
from burnish.engine import checkpoint
from burnish.engine.guard import (
    MEMORY,
    MOST_SKIPS,
    MOST_SKIPS_IN_A_ROW,
    OutOfMemory,
    describe_non_finite,
    held_garbage,
    memory_watched,
)
from burnish.engine.spans import span
from burnish.engine.step import accumulate, clip
from burnish.errors import GuardError, UserError
from burnish.models.freeze import set_training_mode
from burnish.models.precision import Weights
from burnish.models.quantise import scales
from burnish.models.stack import Stack, filler
from burnish.optim.optimizers import Optimizers
from burnish.optim.schedules import Schedule
from burnish.parallel.group import ALONE, Group
from burnish.task import Batch, Task


@dataclass
class State:
    """What changes during a run besides weights and optimizer; saved as JSON with every checkpoint."""

    step: int = 0
    """Finished steps."""
    targets: int = 0
    """Targets learned from so far."""
    seconds: float = 0.0
    """Time spent, over all sittings."""
    evaluated: int = 0
    """Step of the last evaluation."""
    best: dict[str, Any] | None = None
    """Metric, value and step of the best evaluation."""
    stale: int = 0
    """Evaluations since the best one."""
    skipped: list[int] = field(default_factory=list)
    """Steps without an update because of a non-finite number."""
    ended: str | None = None
    """Why the run ended before its full length."""
    base: str = ""
    """Digest of the weights that do not train; checkpoints hold the others only."""


@dataclass
class Job:
    """All that a run needs and that does not change while it runs."""

    model: Any
    weights: Weights
    stack: Stack | None
    task: Task
    loader: Loader
    optimizers: Optimizers
    schedule: Schedule
    total_steps: int
    frozen: list[Any]
    device: str
    seed: int
    clip: float
    on_non_finite: str
    checkpoints: Path
    shrunk: Callable[[int], None]
    """Called with the new micro-batch when memory ran out and it was halved."""
    group: Group = ALONE
    """The other processes that train the same model."""

    def __post_init__(self) -> None:
        self.writer = checkpoint.Writer(self.checkpoints)
        self._frozen = {name for name, value in self.weights.exact.items() if not value.requires_grad}

    @cached_property
    def base(self) -> str:
        """Digest of the weights that do not train. Where several ranks have parts of them, every rank has to ask."""
        frozen = [(name, self.group.whole(self.weights.exact[name])) for name in sorted(self._frozen)]
        return checkpoint.digest([*frozen, *scales(self.model)]) if frozen else ""

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Return what a checkpoint holds: parameters that train and buffers (tied ones once), and the optimizer's state.

        Each is whole; where several ranks have parts of it, every rank has to ask.
        """
        whole = {name: self.group.whole(value) for name, value in self.optimizers.state().items()}
        return {"model": {name: self.group.whole(value) for name, value in self._weights().items()}, "optimizer": whole}

    def _weights(self) -> dict[str, Any]:
        saved = set(self.model.state_dict())
        weights: dict[str, Any] = {n: value for n, value in self.weights.exact.items() if n not in self._frozen}
        return weights | {name: value for name, value in self.model.named_buffers() if name in saved}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model compute with the running mean of its weights while the block runs, if one is kept."""
        self.writer.copied()
        with self.optimizers.averaged(self.weights.publish):
            yield

    def save(self, state: State) -> None:
        """Commit a checkpoint in the background: the weights may change once `writer.copied` returns.

        Buffers are copied here, because a forward pass may change them.
        """
        tensors, state.base = self.tensors(), self.base
        tensors["model"] |= {n: value.clone() for n, value in self.model.named_buffers() if n in tensors["model"]}
        if self.group.leads:
            self.writer.save(state.step, tensors, asdict(state))

    def load(self, path: Path) -> State:
        """Put back the weights, the optimizer and the state of a checkpoint.

        Raises:
            checkpoint.Damaged: it is not whole, or belongs to another model; nothing was changed then.
            UserError: the weights that do not train are others than those it was made with.
        """
        self.writer.wait()
        self.writer.forget()
        try:
            state = State(**checkpoint.verify(path))
        except TypeError as error:
            raise checkpoint.Damaged(f"{path}/state.json: written by another version of burnish") from error
        if state.base != self.base:
            raise UserError(
                f"model.path: the pretrained weights are others than those this run began with ({path.name} holds only what "
                "trains). Put them back, or give another --run.dir."
            )
        weights, optimizer = checkpoint.read(path, "model"), checkpoint.read(path, "optimizer")
        own = self._weights()
        if shapes(weights) != shapes(own):
            raise checkpoint.Damaged(f"{path}/model.safetensors: belongs to another model")
        import torch

        with torch.no_grad():
            for name, value in own.items():
                self.group.put(value, weights[name])
        self.weights.publish(everything=True)
        self.optimizers.load_state(optimizer, self.group.part_of)
        return state


def shapes(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the shape and type of each tensor."""
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device until a line asks for the number."""

    loss: Any
    grad_norm: Any
    lr: float
    rows: int
    targets: int
    positions: int
    """Positions of the rows, padding not counted."""
    padding: float
    """Share of the computed positions that were padding."""
    waited: float
    """Seconds the step waited for its rows."""
    non_finite: dict[str, Any] | None = None


Hook = Callable[[Job, State, StepResult | None], None]
"""Something to do between steps. Hooks run in the order of their list, each decides by `state.step` whether it is due."""


def train(job: Job, state: State, hooks: list[Hook]) -> State:
    """Train from `state` to the end of the run and return the last state.

    Raises:
        GuardError: a non-finite number stopped the run; the weights are those before the bad step.
        Stopped: a hook obeyed a signal.
    """
    with job.writer, held_garbage():
        return _train(job, state, hooks)


def _train(job: Job, state: State, hooks: list[Hook]) -> State:
    batches = job.loader.steps(state.step, job.total_steps)
    result: StepResult | None = None
    while True:
        with span("between steps"):
            for hook in hooks:
                hook(job, state, result)
        if state.step >= job.total_steps or state.ended:
            return state
        if not job.model.training:  # at first, and after an evaluation
            set_training_mode(job.model, job.frozen)
        began = time.monotonic()
        with span("wait for rows"):
            micro_batches = next(batches)
        waited = time.monotonic() - began
        factor = job.schedule.factor(state.step)
        job.optimizers.set_lr(factor)
        job.weights.forget_gradients()
        try:
            loss = gradient_of(job, state, micro_batches)
        except OutOfMemory:
            _halve(job)
            batches, result = job.loader.steps(state.step, job.total_steps), None
            continue
        norm = clip(job.weights.trained(), job.clip, job.group)
        lr = max(group["lr"] for optimizer in job.optimizers.all for group in optimizer.param_groups)
        result = StepResult(loss, norm, lr, *_counted(job, micro_batches), waited)
        passed_over = state.step in state.skipped  # a window that a rollback goes around
        if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            result = replace(result, non_finite=_described(job, state, micro_batches, result))
            if not passed_over:
                _decide(job, state, result)
                if job.on_non_finite == "rollback":
                    state = _rolled_back(job, state)
                    batches, result = job.loader.steps(state.step, job.total_steps), None
                    continue
        elif not passed_over:
            with span("update"):
                job.writer.copied()
                job.optimizers.step()
                job.weights.publish()
                job.weights.learn_statistics()
        state.step += 1
        state.targets += result.targets


def gradient_of(job: Job, state: State, batches: Sequence[Batch]) -> Any:
    """Add the gradient of the step's global batch to the weights and return its loss.

    Raises:
        OutOfMemory: the micro-batch is too large.
    """
    seed = job.seed * 2_000_003 + state.step
    with memory_watched():
        return accumulate(job.model, job.stack, job.task, batches, job.device, seed, job.group)


def _halve(job: Job) -> None:
    """Compute half as many rows at once from now on; the result stays the same."""
    half = job.loader.micro_batch // 2 // job.loader.group * job.loader.group
    if not half or job.group.size > 1:  # the other ranks are in the middle of the step
        raise GuardError(MEMORY)
    job.loader.micro_batch = half
    job.shrunk(job.loader.micro_batch)


def _counted(job: Job, batches: Sequence[Batch]) -> tuple[int, int, int, float]:
    """Return the rows, targets and positions of a step, and which share of what was computed is padding."""
    counts = {
        "rows": sum(len(batch.rows) for batch in batches if not batch.idle),
        "targets": sum(next(iter(batch.weights.values())) for batch in batches),  # terms beside it count them again
        "positions": sum(sum(batch.lengths or []) for batch in batches if not batch.idle),
        "computed": sum(_computed(job, batch.lengths) for batch in batches if batch.lengths),
    }
    found = {name: int(count) for name, count in job.group.sums(counts).items()}
    padding = 1 - found["positions"] / found["computed"] if found["computed"] else 0.0
    return found["rows"], found["targets"], found["positions"], padding


def _computed(job: Job, lengths: list[int]) -> int:
    """Return how many positions the layers compute for rows of these lengths."""
    if job.stack is not None and job.stack.packed:
        return sum(lengths) + filler(lengths)
    return len(lengths) * max(lengths)


def _described(job: Job, state: State, batches: Sequence[Batch], result: StepResult) -> dict[str, Any]:
    """Return what is known of a step with a non-finite number: its bad rows and their places, the first bad parameter."""

    def learn(row: int) -> Any:
        return gradient_of(job, state, [collate(job.loader.store, job.task, [row])])

    rows = [row for ranks in job.group.gather([row for batch in batches for row in batch.rows]) for row in ranks]
    found = describe_non_finite(job.weights, rows, float(result.loss), float(result.grad_norm), learn)
    return {**found, "places": [job.loader.store.where(row) for row in found["rows"]]}


def _decide(job: Job, state: State, result: StepResult) -> None:
    """Stop the run, or note the step as one without an update. The weights were not touched.

    Raises:
        GuardError: the policy is to stop, a weight is already bad, or more steps were skipped than is sound.
    """
    found = result.non_finite or {}
    skipped = sorted({*state.skipped, state.step})
    last = skipped[-MOST_SKIPS_IN_A_ROW - 1 :]
    in_a_row = len(last) > MOST_SKIPS_IN_A_ROW and last[-1] - last[0] == MOST_SKIPS_IN_A_ROW
    too_many = len(skipped) > max(MOST_SKIPS_IN_A_ROW, MOST_SKIPS * job.total_steps)
    if not (job.on_non_finite == "stop" or found["weight"] or in_a_row or too_many):
        state.skipped = skipped
        return
    if not found["weight"]:
        job.save(state)
        job.writer.wait()
    pairs = zip(found["rows"], found["places"], strict=True)
    rows = ", ".join(f"{row} ({place})" for row, place in list(pairs)[:5]) or "no single one, only the batch together"
    parameter = found["weight"] or found["gradient"] or "none"
    advice = "Mend or remove these rows, lower --optim.lr, or give --run.on-non-finite skip."
    if job.on_non_finite != "stop":
        advice = f"{len(skipped)} steps were skipped, more than is sound: lower --optim.lr or mend the data."
    raise GuardError(
        f"Step {state.step + 1}: loss {found['loss']}, gradient norm {found['grad_norm']}. Rows: {rows}. First bad "
        f"{'weight' if found['weight'] else 'gradient'}: {parameter}. The update was not made. {advice}"
    )


def _rolled_back(job: Job, state: State) -> State:
    """Return to the last whole checkpoint, remembering which steps to go around."""
    job.writer.wait()
    job.group.any(False)  # every rank reads what the leading one has written
    path, _ = checkpoint.newest(job.checkpoints)
    if path is None:
        raise GuardError("run.on-non-finite: there is no checkpoint yet to roll back to.")
    back = job.load(path)
    back.skipped = sorted({*back.skipped, *state.skipped})
    return back
