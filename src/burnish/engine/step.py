"""One step's gradient: the only place where a loss is divided and a gradient is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from burnish.engine.spans import span
from burnish.models.stack import Stack
from burnish.parallel.group import ALONE, Group
from burnish.task import Batch, ComparingTask, Task

#: What torch adds to a norm before it divides by it.
_CLIP_SLACK = 1e-6


def arranged(stack: Stack | None, batch: Batch) -> AbstractContextManager[None]:
    """Return the context in which a batch is computed, backward pass included: its rows end to end, or padded."""
    used = stack is not None and (stack.packed or batch.prefix is not None)
    return stack.rows(batch.lengths, batch.prefix) if stack and used else nullcontext()


def seed_device(device: str, seed: int) -> None:
    """Seed the generator that dropout on `device` draws from, and no other: torch.manual_seed costs a millisecond."""
    import torch

    kind = device.split(":")[0]
    if kind == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        getattr(torch, kind).manual_seed(seed)


def accumulate(
    model: Any, stack: Stack | None, task: Task, batches: Sequence[Batch], device: str, seed: int, group: Group = ALONE
) -> Any:
    """Add the gradient of the global batch to the parameters and return its loss, a scalar tensor on `device`.

    Each loss term is summed over all micro-batches of all ranks and divided by that term's weight over the same, so the
    result does not depend on how the batch was cut. A mean of the micro-batches' means would depend on it. So would a loss
    that compares examples, if it were made of each micro-batch: it is made of all of them.

    Args:
        batches: this rank's part of the micro-batches of one step.
        seed: of this step; dropout is a function of it, the rank and the micro-batch, so it need not be saved.
    """
    weights: dict[str, float] = {}
    for batch in batches:
        for term, count in batch.weights.items():
            weights[term] = weights.get(term, 0.0) + count
    weights = group.sums(weights)
    step = _Step(model, stack, device, seed, group)
    if task.compares and (len(batches) > 1 or group.size > 1):
        assert isinstance(task, ComparingTask)
        return _compared(step, task, batches, weights)
    return _summed(step, task, batches, weights)


@dataclass(frozen=True)
class _Step:
    """What computes the micro-batches of one step."""

    model: Any
    stack: Stack | None
    device: str
    seed: int
    group: Group

    @contextmanager
    def computing(self, index: int, batch: Batch) -> Iterator[Batch]:
        """Yield a micro-batch on its device, its rows arranged; dropout comes out the same each time."""
        import torch

        seed_device(self.device, (self.seed * 1_000_003 + index * self.group.size + self.group.rank) % 2**63)
        batch = batch.to(self.device)
        if self.stack is not None and self.stack.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with arranged(self.stack, batch):
            yield batch

    def backward(self, loss: Any) -> None:
        """Add the gradient of a loss; sharded parameters get the mean over ranks, and so it is their sum."""
        with span("backward"):
            (loss * self.group.size).backward()


def _divided(sums: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """Return the loss of terms of given weights; the number 0 if there is no target at all."""
    return sum(value / weights[term] for term, value in sums.items() if weights[term])


def _summed(step: _Step, task: Task, batches: Sequence[Batch], weights: Mapping[str, float]) -> Any:
    """Add the gradient of a loss that is a sum over examples, one micro-batch at a time."""
    import torch

    total = torch.zeros((), device=step.device)
    for index, batch in enumerate(batches):
        with step.computing(index, batch) as batch:
            with span("forward"):
                loss = _divided(task.loss(step.model, batch), weights)
            if isinstance(loss, torch.Tensor):  # a step without any target adds nothing
                loss = loss * 0 if batch.idle else loss
                step.backward(loss)
                total += loss.detach()
    return step.group.total(total)


def _compared(step: _Step, task: ComparingTask, batches: Sequence[Batch], weights: Mapping[str, float]) -> Any:
    """Add the gradient of a loss that compares all examples of the step, of which only a micro-batch fits at once.

    First what the model makes of every example is found without a gradient and brought together. The loss of all gives
    the gradient of each, which is then carried through the model, micro-batch by micro-batch.

    Source: Gao et al. 2021 (GradCache), section 3.2.
    """
    import torch

    own = [batch for batch in batches if not batch.idle]
    made = []
    with torch.no_grad(), span("forward"):
        for index, batch in enumerate(batches):
            with step.computing(index, batch) as moved:
                represented = task.represent(step.model, moved)
            if not batch.idle:
                made.append(represented)
    ranks = step.group.gather(([part.cpu() for part in made], [batch.targets for batch in own]))
    whole = torch.cat([part for parts, _ in ranks for part in parts]).to(step.device).requires_grad_()
    targets = [batch for _, parts in ranks for batch in parts]
    joined = {name: torch.cat([part[name] for part in targets]).to(step.device) for name in targets[0]}
    loss = _divided(task.compare(whole, joined), weights)
    (slopes,) = torch.autograd.grad(loss, whole)
    start = sum(len(part) for parts, _ in ranks[: step.group.rank] for part in parts)
    for index, batch in enumerate(batches):
        with step.computing(index, batch) as moved:
            with span("forward"):
                represented = task.represent(step.model, moved)
            slope = slopes[start : start + len(represented)] if not batch.idle else torch.zeros_like(represented)
            step.backward((represented * slope).sum())
            start += 0 if batch.idle else len(represented)
    return loss.detach()


def clip(parameters: list[Any], largest: float, group: Group = ALONE) -> Any:
    """Return the norm of the whole gradient (global L2) after scaling it down to `largest`; 0 only measures."""
    import torch

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = group.whole(torch.nn.utils.get_total_norm(gradients))
    if largest and float(norm) + _CLIP_SLACK > largest:  # else it would multiply by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
