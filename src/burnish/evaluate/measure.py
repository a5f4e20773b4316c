"""Evaluating a model: one record per example, metrics from the records, intervals by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from burnish.data.loader import collate
from burnish.data.store import Store
from burnish.engine.step import arranged
from burnish.errors import GuardError
from burnish.models.stack import Stack
from burnish.parallel.group import ALONE, Group
from burnish.task import Records, Task


def score(
    model: Any,
    task: Task,
    store: Store,
    *,
    batch: int,
    device: str,
    stack: Stack | None = None,
    group: Group = ALONE,
    prefix: Callable[[Sequence[int]], Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    rows: Sequence[int] | None = None,
) -> Records:
    """Return the records of the examples of `store`, in its order. The model is left in evaluation mode.

    Args:
        batch: examples computed at once; examples of like length go together.
        stack: of the model, to lay rows end to end if it does; None pads them.
        group: the ranks that compute the model; each scores its share, and all get all records.
        prefix: what the model's frozen layers give for rows of this store, if that is stored.
        progress: called with the number of examples done after each batch; may raise to stop.
        rows: score only these examples; None is all.
    """
    import torch

    model.eval()
    chosen = np.arange(len(store)) if rows is None else np.asarray(rows)
    order = chosen[np.argsort(store.lengths()[chosen], kind="stable")]
    parts: list[Records] = []
    done = 0
    with torch.inference_mode():
        for start in range(0, len(order), batch * group.size):
            rows_now = [int(row) for row in order[start : start + batch * group.size]]
            own = rows_now[group.rank :: group.size]
            mine = own or rows_now[:1]  # every rank computes each time, to keep step
            piece = collate(store, task, mine, prefix(mine) if prefix else None)
            piece = piece.to(device)
            with arranged(stack, piece):
                records = task.score(model, piece)
            records |= task.write(model, piece)
            if own:
                parts.append({"index": np.asarray(piece.rows), **records})
            done += len(rows_now)
            progress(done)
    parts = [part for rank in group.gather(parts) for part in rank]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    back = np.argsort(joined.pop("index"), kind="stable")
    return task.join({name: values[back] for name, values in joined.items()})


def sound_metrics(task: Task, records: Records) -> dict[str, float]:
    """Return the metrics of all examples.

    Raises:
        GuardError: one of them is no number, which would hide in a log as a gap.
    """
    metrics = task.metrics(records)
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise GuardError(
            f"Evaluation: {', '.join(bad)} came out as no finite number, so the model's output is not finite on some row. "
            "Lower --optim.lr, or look at the data."
        )
    return metrics


def intervals(
    task: Task, records: Records, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return a confidence interval of each metric: percentiles over resamples of the examples with replacement.

    Source: Efron and Tibshirani 1993, section 13.3.
    """
    size = len(next(iter(records.values())))
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = random.integers(0, size, size)
        drawn.append(task.metrics({name: values[rows] for name, values in records.items()}))
    edges = (100 * (1 - level) / 2, 100 * (1 + level) / 2)
    found = {}
    for name in drawn[0]:
        low, high = np.percentile([metrics[name] for metrics in drawn], edges)
        found[name] = (float(low), float(high))
    return found
