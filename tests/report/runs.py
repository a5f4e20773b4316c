"""Run folders written by hand, in the forms that a session writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from burnish.run import RunFolder

#: Text that would do harm if a page or a table took it for anything but text.
PAYLOAD = '<script>alert("x")</script>'
TABLE_BREAKER = "a|b `c` <b>d</b>\n# e"


def write_run(
    path: Path,
    *,
    task: str,
    metrics: dict[str, Any],
    figures: list[dict[str, Any]],
    log: list[dict[str, Any]],
    facts: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    best: str,
    steps: int,
    broken: Sequence[dict[str, str]] = (),
) -> RunFolder:
    """Write a run folder as it is when its session renders report and card: `metrics.json` is not there yet."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    splits = ["train", *(split for split in ("validation", "test") if split in metrics)]
    plan = {
        "device": "cpu",
        "threads": 2,
        "precision": "fp32",
        "sequence": 64,
        "micro_batch": 8,
        "lr": 0.0005,
        "total_rows": 8 * steps,
        "total_steps": steps,
        "warmup_steps": 2,
        "evaluate_every": 10,
        "evaluate_rows": 90,
        "best": best,
        "memory": {"parameters": 4_000_000, "gradients": 2_000_000, "optimizer": 4_000_000},
        "model": {"summary": "TinyModel, 1.0 M parameters", "parameters": 1_000_000, "trainable": 500_000},
        "data": {
            "fingerprint": "0123456789abcdef",
            "rows": dict.fromkeys(splits, 1000),
            "broken_rows": len(broken),
            "examples": dict.fromkeys(splits, 1000),
            "tokens": dict.fromkeys(splits, 20_000),
        },
        "facts": facts,
        "why": {"precision": "bfloat16 would be emulated and slower on this cpu"},
    }
    environment = {
        "versions": {"python": "3.12.0", "burnish": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux 6", "processor": "A Processor", "cores": 2, "memory_bytes": 8 * 1024**3},
        "device": "cpu",
        "threads": 2,
        "command": ["burnish", "train", task, "--data.train", "rows.csv"],
    }
    basis = {"task": {"name": task}, "model": {"preset": "gpt2-nano"}, "data": {"train": ["rows.csv"]}}
    folder.config.write_text(yaml.safe_dump(basis | (recipe or {}), sort_keys=False))
    folder.plan.write_text(json.dumps(plan))
    folder.environment.write_text(json.dumps(environment))
    folder.figures.write_text(json.dumps({"metrics": {"task": task, **metrics}, "figures": figures}))
    folder.log.write_text("".join(json.dumps(line) + "\n" for line in log))
    if broken:
        folder.rejects.write_text("".join(json.dumps(row) + "\n" for row in broken))
    return folder


def step(number: int, *, loss: float | None = 1.0, targets: int = 8, **more: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl for a step."""
    return {
        "step": number,
        "loss": loss,
        "lr": 0.0005 / (1 + number / 50),
        "grad_norm": None if loss is None else 1.0 + math.sin(number) / 3,
        "epoch": number / 125,
        "rows": 8,
        "targets": targets,
        "seconds": 0.05,
        **more,
    }


def evaluation(number: int, metrics: dict[str, float], best: str) -> dict[str, Any]:
    """Return a line of metrics.jsonl for an evaluation."""
    return {
        "step": number,
        "evaluation": "validation",
        "metrics": metrics,
        "best": {"metric": best, "value": metrics[best], "step": number},
    }


def _ranges(metrics: dict[str, float]) -> dict[str, list[float]]:
    return {name: [0.9 * value, 1.1 * value] for name, value in metrics.items()}


def classification_run(path: Path, labels: tuple[str, ...] = ("bad", "good"), steps: int = 40) -> RunFolder:
    """Write a run of text classification with validation and test rows."""
    size = len(labels)
    metrics = {"loss": 0.35, "accuracy": 0.9, "macro_f1": 0.88, "matthews": 0.77, "calibration_error": 0.03}
    tested = {name: 0.98 * value for name, value in metrics.items()}
    log: list[dict[str, Any]] = []
    for number in range(1, steps + 1):
        log.append(step(number, loss=0.7 * math.exp(-number / steps) + 0.05 * math.cos(7 * number)))
        if number % max(1, steps // 8) == 0:
            log.append(evaluation(number, {k: v * (1 + 1 / number) for k, v in metrics.items()}, "accuracy"))
    matrix = [[80 if row == column else 3 * (row + column) % 11 for column in range(size)] for row in range(size)]
    points = [{"confidence": c / 10 + 0.05, "accuracy": c / 11, "rows": 3 * c} for c in range(4, 10)]
    figures = [
        figure
        for split in ("validation", "test")
        for figure in (
            {"split": split, "kind": "matrix", "title": "Confusion matrix", "labels": list(labels), "values": matrix},
            {"split": split, "kind": "calibration", "title": "Calibration", "points": points},
        )
    ]
    return write_run(
        path,
        task="text-classification",
        metrics={
            "step": steps,
            "seconds": 3725.0,
            "targets": 8 * steps,
            "train_loss": 0.3,
            "validation": metrics,
            "test": tested,
            "intervals": {"validation": _ranges(metrics), "test": _ranges(tested)},
        },
        figures=figures,
        log=log,
        facts={"labels": list(labels), "counts": [100 + index for index in range(size)]},
        recipe={"model": {"path": "sentence-transformers/all-MiniLM-L6-v2"}, "optim": {"lr": 0.0005}},
        best="accuracy",
        steps=steps,
    )


def generation_run(path: Path, *, skipped: tuple[int, ...] = (), steps: int = 30, validation: bool = True) -> RunFolder:
    """Write a run of text generation; the steps in `skipped` had a loss that is no number."""
    metrics = {"bits_per_byte": 2.5, "loss": 4.0, "perplexity": 54.6}
    bad = {"loss": "nan", "grad_norm": "nan", "rows": [3, 14], "weight": None, "gradient": "transformer.wte.weight"}
    log = [
        step(number, loss=None, targets=512, non_finite=bad)
        if number in skipped
        else step(number, loss=4 + 3 / number, targets=512)
        for number in range(1, steps + 1)
    ]
    if validation:
        log += [evaluation(number, metrics, "bits_per_byte") for number in range(10, steps + 1, 10)]
    rows = [
        {"prompt": prompt, "temperature": temperature, "text": f" went\n\n  {PAYLOAD} away"}
        for temperature in (0.0, 0.8)
        for prompt in ("The king", f"The {PAYLOAD}")
    ]
    measured: dict[str, Any] = {"intervals": {"validation": _ranges(metrics)}} if validation else {"intervals": {}}
    measured |= {"validation": metrics} if validation else {}
    return write_run(
        path,
        task="text-generation",
        metrics={"step": steps, "seconds": 12.5, "targets": 512 * steps, "train_loss": 4.1, **measured},
        figures=[{"kind": "texts", "title": "Generated text", "rows": rows}, {"kind": "spectrum", "title": "New kind"}],
        log=log,
        facts={"prompts": [f"The {PAYLOAD}"]},
        best="bits_per_byte",
        steps=steps,
        broken=[{"where": "rows.csv:7", "reason": f"has no column {PAYLOAD}"}] if skipped else [],
    )
