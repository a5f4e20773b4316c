"""What a run is judged by at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from burnish.data.store import Store
from burnish.engine.loop import State
from burnish.engine.rates import speed
from burnish.evaluate.measure import intervals, sound_metrics
from burnish.task import Records, Task


def final(
    task: Task,
    state: State,
    step: int,
    log: list[dict[str, Any]],
    stores: Mapping[str, Store],
    score: Callable[[str], Records],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the final figures of a run, as RUN/metrics.json holds them, and what the report draws of its evaluations.

    What the task chooses by the validation rows, such as thresholds, it uses from then on.

    Args:
        step: whose weights are judged.
        log: the lines of RUN/metrics.jsonl.
        stores: of the splits that are measured.
        score: returns the records of a split.
    """
    losses = [line["loss"] for line in log if line.get("loss") is not None]
    metrics: dict[str, Any] = {
        "task": task.name,
        "step": step,
        "seconds": round(state.seconds, 1),
        "targets": state.targets,
        "ended": state.ended,
        "skipped_steps": [skipped + 1 for skipped in state.skipped],
        "speed": speed(log),
        "train_loss": sum(losses[-20:]) / len(losses[-20:]) if losses else None,
    }
    figures: list[dict[str, Any]] = []
    ranges: dict[str, Any] = {}
    for split, store in stores.items():
        records = score(split)
        if split == "validation":
            metrics["decided"] = task.decide(records)
            task.facts = {**task.facts, **metrics["decided"]}
        metrics[split] = sound_metrics(task, records)
        ranges[split] = intervals(task, records)
        shown = task.figures(records) + task.pictures(records, store.__getitem__)
        figures += [{"split": split, **figure} for figure in shown]
    return metrics | {"intervals": ranges}, figures
