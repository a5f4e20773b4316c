"""One step's gradient: the only place where a loss is divided and a gradient is made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from burnish.engine.spans import span
from burnish.models.stack import Stack
from burnish.parallel.group import ALONE, Group
from burnish.task import Batch, Task


def arranged(stack: Stack | None, batch: Batch) -> AbstractContextManager[None]:
    """Return the context in which a batch is computed, backward pass included: its rows end to end, or padded."""
    return stack.rows(batch.lengths, batch.prefix) if stack and stack.packed else nullcontext()


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
    result does not depend on how the batch was cut. A mean of the micro-batches' means would depend on it.

    Args:
        batches: this rank's part of the micro-batches of one step.
        seed: of this step; dropout is a function of it, the rank and the micro-batch, so it need not be saved.
    """
    import torch

    weights: dict[str, float] = {}
    for batch in batches:
        for term, count in batch.weights.items():
            weights[term] = weights.get(term, 0.0) + count
    weights = group.sums(weights)
    total = torch.zeros((), device=device)
    for index, batch in enumerate(batches):
        seed_device(device, (seed * 1_000_003 + index * group.size + group.rank) % 2**63)
        batch = batch.to(device)
        with arranged(stack, batch):
            with span("forward"):
                sums = task.loss(model, batch)
            loss = sum(value / weights[term] for term, value in sums.items() if weights[term])
            if isinstance(loss, torch.Tensor):  # a step without any target adds nothing
                loss = loss * 0 if batch.idle else loss
                with span("backward"):
                    (loss * group.size).backward()  # sharded parameters get the mean over ranks: so it is their sum
                total += loss.detach()
    return group.total(total)


def clip(parameters: list[Any], largest: float, group: Group = ALONE) -> Any:
    """Return the norm of the whole gradient (global L2) after scaling it down to `largest`; 0 only measures."""
    import torch

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = group.whole(torch.nn.utils.get_total_norm(gradients))
    if largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm
