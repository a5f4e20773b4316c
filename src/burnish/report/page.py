"""report.html: one page that shows how a run went, whole in itself: no script, no network, charts inline."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from burnish.report.charts import SECOND, Points, Series, line_chart, smooth
from burnish.report.facts import (
    Facts,
    broken_rows,
    environment_rows,
    metric_words,
    number,
    read_facts,
    template,
    time_words,
)
from burnish.report.figures import draw
from burnish.run import RunFolder
from burnish.units import readable_bytes, readable_count

#: Rows, steps and labels named one by one; the rest is counted.
_NAMED = 10


def render_report(folder: RunFolder) -> str:
    """Return the page of a run, from its files.

    Raises:
        UserError: a file is missing or damaged.
    """
    facts = read_facts(folder)
    labels, counts = facts.plan["facts"].get("labels", []), facts.plan["facts"].get("counts", [])
    return template("page.html.jinja", autoescape=True).render(
        facts=facts,
        tiles=tiles(facts),
        charts=training_charts(facts),
        on_the_way=validation_charts(facts),
        part=evaluated_part(facts),
        figures=[drawn for figure in facts.figures if (drawn := draw(figure))],
        notes=notes(facts),
        derived=derived(facts),
        data=data_rows(facts),
        labels=list(zip(labels, counts, strict=False))[:_NAMED],
        more_labels=max(0, len(labels) - _NAMED),
        environment=environment_rows(facts),
        command=shlex.join(facts.environment["command"]),
    )


# -- main figures ------------------------------------------------------------------------------------------------


def tiles(facts: Facts) -> list[dict[str, str]]:
    """Return the main figures, each with `label`, `value` and `note`; the one that decides what is best first."""
    found = [_best_tile(facts)]
    if seconds := facts.metrics.get("seconds"):
        epochs = f", {facts.epochs:.3g} epochs" if facts.epochs else ""
        note = f"{facts.last_step:,} steps{epochs}"
        found.append({"label": "training time", "value": time_words(seconds), "note": note})
        targets, word = facts.metrics["targets"], facts.target_word
        value, note = readable_count(targets / seconds), f"{targets:,} {word} learned from"
        found.append({"label": f"{word} per second", "value": value, "note": note})
    if speed := facts.metrics.get("speed"):
        mfu = "" if speed["mfu"] is None else f", model operations {speed['mfu']:.0%} of the device's best"
        note = f"{speed['padding']:.1%} padding, {speed['waited']:.1%} of the time waiting for rows{mfu}"
        found.append({"label": "peak memory", "value": readable_bytes(speed["peak_memory_bytes"]), "note": note})
    trained, total = facts.plan["model"]["trainable"], facts.plan["model"]["parameters"]
    share = "all of them" if trained == total else f"{trained / total:.1%} of {readable_count(total)}"
    found.append({"label": "parameters trained", "value": readable_count(trained), "note": share})
    return found


def _best_tile(facts: Facts) -> dict[str, str]:
    split = next((split for split in ("test", "validation") if split in facts.splits), None)
    if split is None:
        loss = facts.metrics.get("train_loss")
        return {"label": "training loss", "value": number(loss), "note": "mean of the last 20 logged steps"}
    name = facts.metric_names[0]
    edges = facts.interval(split, name)
    note = f"95 % interval {number(edges[0])} to {number(edges[1])}" if edges else ""
    return {"label": f"{split} {metric_words(name)}", "value": number(facts.metrics[split].get(name)), "note": note}


# -- charts ------------------------------------------------------------------------------------------------------


def training_charts(facts: Facts) -> list[dict[str, Any]]:
    """Return the charts of training, each with `title`, `legend` (colour, look and meaning of a line) and `svgs`."""
    loss = _points(facts.steps, "loss")
    validation = [(line["step"], line["metrics"]["loss"]) for line in facts.evaluations if "loss" in line["metrics"]]
    skipped = [line["step"] for line in facts.skipped]
    window = _window(loss)
    series = [Series(loss, look="faint"), Series(smooth(loss, window)), Series(validation, SECOND, "dots")]
    legend = [("first faint", "every logged step"), ("first", f"mean over {window} of them")] if loss else []
    legend += [("second dot", f"validation{evaluated_part(facts)}")] if validation else []
    legend += [("warning bar", "step skipped")] if skipped else []
    svgs = [
        line_chart(f"loss {size}", "Loss of training and validation over the steps", series, size=size, marks=skipped)
        for size in ("wide", "narrow")
    ]
    charts = [{"title": "Loss", "legend": legend, "svgs": svgs}]
    word = facts.target_word
    speed = [(line["step"], line["targets"] / line["seconds"]) for line in facts.steps if line.get("seconds")]
    rates = [("lr", "Learning rate", True), ("grad_norm", "Gradient norm, before clipping", False)]
    for title, points, from_zero, faint in (
        *((title, _points(facts.steps, key), zero, key != "lr") for key, title, zero in rates),
        (f"Throughput, {word} per second", speed, True, True),
    ):
        lines = [Series(points, look="faint"), Series(smooth(points, window))] if faint else [Series(points)]
        svg = line_chart(title, f"{title}, over the steps", lines, from_zero=from_zero)
        charts.append({"title": title, "legend": [], "svgs": [svg]})
    return [chart for chart in charts if any(chart["svgs"])]


def evaluated_part(facts: Facts) -> str:
    """Return on how many of the validation examples was measured on the way, in words; nothing if on all."""
    some, total = facts.plan.get("evaluate_rows"), facts.plan["data"]["examples"].get("validation", 0)
    return f" on {some:,} of {total:,} examples" if some and some < total else ""


def _points(lines: Sequence[dict[str, Any]], key: str) -> Points:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _window(points: Points) -> int:
    """Return over how many points a line is smoothed: a part of it, odd, at least 5."""
    return max(5, len(points) // 25 // 2 * 2 + 1)


def validation_charts(facts: Facts) -> list[dict[str, Any]]:
    """Return a small chart of each metric measured on the way, with `name`, `svg`, `value` and `best`.

    `value` is the last one and `best` is None; of the metric that decides, they are the best value and its step.
    """
    charts = []
    best = facts.evaluations[-1].get("best") if facts.evaluations else None
    for name in dict.fromkeys(name for line in facts.evaluations for name in line["metrics"]):
        points = [(line["step"], line["metrics"][name]) for line in facts.evaluations if name in line["metrics"]]
        if len(points) < 2:
            continue
        ring = (best["step"], best["value"]) if best and best["metric"] == name else None
        step, value = ring or (None, points[-1][1])
        label = f"Validation {metric_words(name)} over the steps"
        svg = line_chart(f"on the way {name}", label, [Series(points, SECOND, "dots")], size="small", ring=ring)
        charts.append({"name": name, "svg": svg, "best": step, "value": value})
    return sorted(charts, key=lambda chart: chart["name"] != facts.plan["best"])


# -- notes and tables --------------------------------------------------------------------------------------------


def notes(facts: Facts) -> list[dict[str, Any]]:
    """Return what a reader should know before trusting the figures: each a `text` and `details`, a list."""
    found: list[dict[str, Any]] = []
    if facts.skipped:
        count = len(facts.skipped)
        text = f"{_steps(count)} skipped: loss or gradient was not a finite number, so no update was made."
        found.append({"text": text, "details": _named([_skip(line) for line in facts.skipped[:_NAMED]], count)})
    if broken := facts.plan["data"].get("broken_rows"):
        rows = [f"{row['where']}: {row['reason']}" for row in broken_rows(facts.folder, _NAMED)]
        text = f"{broken:,} {'row was' if broken == 1 else 'rows were'} broken and left out."
        found.append({"text": text, "details": _named(rows, broken)})
    step = facts.metrics.get("step")
    if step is not None and step < facts.last_step:
        text = f"The model and the figures are those of step {step:,}, the best by {metric_words(facts.plan['best'])}."
        found.append({"text": text, "details": []})
    if facts.metrics and facts.last_step < facts.plan["total_steps"]:
        text = f"The run ended early, after {facts.last_step:,} of {facts.plan['total_steps']:,} steps"
        if why := facts.metrics.get("ended"):
            text += f": {why}"
        found.append({"text": f"{text}.", "details": []})
    return found


def _steps(count: int) -> str:
    return "1 step was" if count == 1 else f"{count:,} steps were"


def _skip(line: dict[str, Any]) -> str:
    found = line.get("non_finite") or {}
    rows = ", ".join(str(row) for row in found.get("rows", [])[:_NAMED])
    parts = [f"step {line['step']:,}"]
    parts += [f"training rows {rows}"] if rows else []
    parts += [f"first bad gradient {found['gradient']}"] if found.get("gradient") else []
    return ", ".join(parts)


def _named(details: list[str], count: int) -> list[str]:
    return details + ([f"and {count - len(details):,} more"] if details and count > len(details) else [])


#: What the plan calls a value, to what the page calls it.
_DERIVED = {
    "device": "device",
    "threads": "threads",
    "precision": "precision",
    "sequence": "longest sequence, in {unit}",
    "micro_batch": "rows computed at once",
    "lr": "peak learning rate",
    "total_rows": "rows trained on",
    "total_steps": "steps",
    "warmup_steps": "steps of warm-up",
    "evaluate_every": "steps between evaluations",
    "evaluate_rows": "rows evaluated on the way",
    "best": "metric that says what is best",
}


def derived(facts: Facts) -> list[tuple[str, str, str]]:
    """Return what the run derived or fixed at its start: name, value and reason."""
    plan, memory = facts.plan, facts.plan["memory"]
    rows = [
        (words.format(unit=facts.unit), _shown(plan[name]), plan["why"].get(name, ""))
        for name, words in _DERIVED.items()
        if name in plan
    ]
    parts = ", ".join(f"{name} {readable_bytes(size)}" for name, size in memory.items())
    return [*rows, ("memory before activations", readable_bytes(sum(memory.values())), parts)]


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else metric_words(value)


def data_rows(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the size of each split: name, rows, and what became of them."""
    data = facts.plan["data"]
    return [
        (
            split,
            f"{rows:,}",
            f"{data['examples'].get(split, 0):,} examples of {data['tokens'].get(split, 0):,} {facts.unit}",
        )
        for split, rows in data["rows"].items()
    ]
