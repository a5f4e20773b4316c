"""What several test files use: generated text, commands, and what makes two runs equal."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return generated English-like sentences of 3 to 30 words."""
    draw = random.Random(seed)
    words = [
        "the",
        "a",
        "old",
        "new",
        "river",
        "stone",
        "light",
        "king",
        "garden",
        "runs",
        "sees",
        "keeps",
        "slowly",
        "never",
        "under",
        "over",
        "green",
        "quiet",
        "was",
        "is",
    ]
    return [" ".join(draw.choice(words) for _ in range(draw.randint(3, 30))).capitalize() + "." for _ in range(count)]


def sentiment_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return generated sentences whose label follows from one word in them."""
    draw = random.Random(seed)
    good, bad = ["good", "fine", "great"], ["bad", "poor", "awful"]
    rows = []
    for text in sentences(count, seed):
        label = draw.choice(["positive", "negative"])
        words = text.split()
        words.insert(draw.randrange(len(words)), draw.choice(good if label == "positive" else bad))
        rows.append((" ".join(words), label))
    return rows


LM = [
    "train", "text-generation", "--preset", "gpt2-nano", "--model.vocab-size", "300", "--train.sequence", "32",
    "--train.batch", "4", "--generate.max-tokens", "2", "--train.precision", "fp32",
]  # fmt: skip
CLASSIFY = ["train", "text-classification", "--train.batch", "8", "--train.precision", "fp32", "--optim.lr", "1e-3"]


def burnish(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 300):
    """Run the command line in a fresh process and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "burnish", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def result_of(folder: Path) -> dict[str, object]:
    """Return what must be equal in two runs that are identical: weights, optimizer, losses, figures."""
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["seconds"]
    return {
        "step": newest.name,
        "weights": digest(folder / "model" / "model.safetensors"),
        "checkpoint": digest(newest / "model.safetensors"),
        "optimizer": digest(newest / "optimizer.safetensors"),
        "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line],
        "evaluations": [(line["step"], line["metrics"]) for line in lines if "evaluation" in line],
        "metrics": metrics,
    }
