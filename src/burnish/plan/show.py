"""What a person sees of a plan and of a run's end: rows of name, value and reason."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.config import Config
from burnish.data.prepare import Splits
from burnish.data.sounds import FLAWS
from burnish.data.store import Store
from burnish.env import versions
from burnish.optim.schedules import Schedule
from burnish.plan.derive import Plan
from burnish.task import unit_of
from burnish.units import readable_bytes, readable_count, readable_seconds, steps_words

Rows = list[tuple[str, str, str]]


def plan_rows(plan: Plan, config: Config, run: str, exactness: str) -> Rows:
    """Return what will happen and why.

    Args:
        run: the run's folder.
        exactness: how exactly this model can be trained.
    """
    why, data, model = plan.why, plan.data, plan.model
    unit = unit_of(config.task.name, plan.sequence)
    ranks = config.parallel.ranks
    return [
        ("run", run, ""),
        ("model", model["summary"], f"from {config.model.path or f'scratch, preset {config.model.preset}'}"),
        (
            "trains",
            f"{model['trainable']:,} of {model['parameters']:,} parameters ({model['trainable'] / model['parameters']:.1%})",
            "",
        ),
        (
            "data",
            ", ".join(f"{count:,} {split}" for split, count in data["rows"].items()) + " rows",
            f"{data['examples']['train']:,} training examples"
            + (f" of {data['tokens']['train']:,} {unit}" if unit != "images" else ""),
        ),
        ("length", f"{plan.total_steps:,} steps", why.get("total_steps", "")),
        ("batch", f"{config.train.batch} rows, {plan.micro_batch} at once", why.get("micro_batch", "")),
        ("sequence", "maps" if unit == "images" else f"{plan.sequence} {unit}", why.get("sequence", "")),
        ("optimizer", f"{config.optim.name}, peak learning rate {plan.lr:g}", why.get("lr", "")),
        (
            "schedule",
            f"{config.schedule.name}, {steps_words(plan.warmup_steps)} of warm-up",
            Schedule(config.schedule, plan.total_steps, plan.warmup_steps).preview(48),
        ),
        (
            "evaluation",
            f"every {plan.evaluate_every} steps on {plan.evaluate_rows:,} rows",
            why.get("evaluate_rows", ""),
        ),
        ("rows", plan.arrangement or "end to end or padded", why.get("arrangement", "tried when the model is built")),
        ("precision", plan.precision, why.get("precision", "")),
        ("compiled", "yes" if plan.compile else "no", why.get("compile", "")),
        ("recomputed", plan.recompute, why.get("recompute", "")),
        (
            "device",
            (f"{ranks} ranks of " if ranks > 1 else "") + f"{plan.device}, {plan.threads} threads",
            why.get("device", ""),
        ),
        (
            "memory",
            ", ".join(f"{name} {readable_bytes(size)}" for name, size in plan.memory.items()),
            f"{readable_bytes(sum(plan.memory.values()))} before activations",
        ),
        ("exactness", exactness, ""),
    ]


def left_out_rows(splits: Splits, store: Store, plan: Plan, cuts: bool) -> Rows:
    """Return which training rows are cut or passed over.

    Args:
        store: of the training rows.
        cuts: whether the task drops what does not fit into a sequence.
    """
    rows = []
    if splits.broken:
        first = splits.broken[0]
        rows.append(("broken rows", f"{len(splits.broken)} skipped", f"{first.where}: {first.reason}"))
    rows += [("leak", said, "what is measured on them says nothing about new ones") for said in splits.twice]
    if "flaw" in store.features:
        flaws = store.values("flaw")
        for number, flaw in enumerate(FLAWS[1:], 1):
            if len(found := np.flatnonzero(flaws == number)):
                rows.append((flaw, f"{len(found):,} training sounds", f"such as {store.where(int(found[0]))}"))
    counted = store.values("cut") if "cut" in store.features else store.lengths() >= plan.sequence
    if cuts and (cut := int(counted.sum())):
        advice = "what lies beyond is not read; --train.sequence sets the limit"
        rows.append(("long rows", f"{cut:,} training rows reach {plan.sequence} tokens and are cut", advice))
    return rows


def end_rows(metrics: dict[str, Any], sequence: int) -> Rows:
    """Return the final metrics with their intervals, the time and the speed.

    Args:
        sequence: positions of a row, as planned.
    """
    rows = []
    for split in ("validation", "test"):
        for name, value in metrics.get(split, {}).items():
            low, high = metrics["intervals"][split][name]
            rows.append((f"{split} {name}", f"{value:.4f}", f"95 % interval {low:.4f} to {high:.4f}"))
    learned = f"{readable_count(metrics['targets'])} targets learned from"
    rows.append(("time", readable_seconds(metrics["seconds"]), learned))
    found = metrics["speed"]
    names = {"padding": "padding", "waited": "waited", "mfu": "MFU"}
    notes = [f"{words} {found[name]:.1%}" for name, words in names.items() if found[name] is not None]
    notes.append(f"peak memory {readable_bytes(found['peak_memory_bytes'])}")
    speed = f"{readable_count(found['positions_per_second'])} {unit_of(metrics['task'], sequence)}/s"
    rows.append(("speed", speed, ", ".join(notes)))
    return rows


def profile_rows(found: dict[str, Any]) -> Rows:
    """Return where the time of a step went: its parts, then the operators that took most."""
    rows = [(name, f"{share:.1%}", "") for name, share in found["parts"].items()]
    return rows + [("operator", f"{share:.1%}", name) for name, share in found["operators"].items()]


def changes(environment: dict[str, Any], wanted_threads: int | None, threads: int) -> list[str]:
    """Return what differs from when a run began, of all that its last bits depend on."""
    before = environment["versions"]
    notes = [
        f"note: {name} is {version} now, was {before.get(name)}; equal bits are not promised across versions"
        for name, version in versions().items()
        if before.get(name) != version
    ]
    if wanted_threads not in (None, threads):
        notes.append(f"note: going on with {threads} threads as the run began; the last bits depend on it")
    return notes
