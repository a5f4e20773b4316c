"""What several test files use: generated text, commands, and what makes two runs equal."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.terminal import Terminal
from forks import forks

if TYPE_CHECKING:
    from burnish.session import Session

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


def tagged_rows(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Return generated sentences as words, each with a tag that follows from it."""
    tags = {"old": "B-PERSON", "king": "I-PERSON", "river": "B-WATER"}
    words = [text.rstrip(".").lower().split() for text in sentences(count, seed)]
    return [{"tokens": tokens, "tags": [tags.get(token, "O") for token in tokens]} for tokens in words]


def preferences(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return prompts, each with an answer that agrees and one that does not."""
    draw = random.Random(seed)
    good, bad = ["He was good.", "Yes, a fine king.", "Great."], ["He was poor.", "No, a bad king he was.", "Awful."]
    return [
        {"prompt": " ".join(text.split()[:9]), "chosen": f" {draw.choice(good)}", "rejected": f" {draw.choice(bad)}"}
        for text in sentences(count, seed)
    ]


def bars(folder: Path, count: int, side: int = 16, seed: int = 0) -> None:
    """Write pictures of bars of any colour on noise, `count` that stand and as many that lie, in a folder for each."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    for number in range(2 * count):
        pixels = random.integers(0, 90, (side, side, 3)).astype(np.uint8)
        place = int(random.integers(1, side - 3))
        pixels[:, place : place + 3] = random.integers(130, 256, 3)
        lies = number % 2
        path = folder / ("lying" if lies else "standing") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 0, 2) if lies else pixels).save(path)


def first_step(session: Any) -> tuple[Any, Any]:
    """Return the loss of the first step and its gradient by all that is trained, in one row."""
    import torch

    from burnish.engine.step import accumulate

    job = session.job
    job.weights.forget_gradients()
    loss = accumulate(job.model, job.stack, job.task, job.loader.step(0), "cpu", 0)
    return loss, torch.cat([value.grad.flatten() for value in job.weights.trained() if value.grad is not None])


def gradient_of(session: Any, micro_batch: int, mean: bool = False) -> Any:
    """Return the gradient of the first step, cut into micro-batches; with `mean`, as a mean of their means."""
    import torch

    job = session.job
    job.loader.micro_batch = micro_batch
    if not mean:
        return first_step(session)[1]
    job.weights.forget_gradients()
    batches = job.loader.step(0)
    for batch in batches:
        loss = sum(value / max(1, batch.weights[name]) for name, value in job.task.loss(job.model, batch).items())
        (loss / len(batches)).backward()
    return torch.cat([value.grad.flatten() for value in job.weights.trained() if value.grad is not None])


def patches(folder: Path, count: int, side: int = 32, seed: int = 0) -> None:
    """Write pictures of a disc and a square on noise, and their masks: 0, 1 and 3."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels, mask = random.integers(0, 90, (side, side, 3)).astype(np.uint8), np.zeros((side, side), np.uint8)
        (down, across), (top, left) = random.integers(6, side - 6, 2), random.integers(0, side - 10, 2)
        mask[(rows - down) ** 2 + (columns - across) ** 2 < 30] = 1
        mask[top : top + 9, left : left + 9] = 3
        pixels[mask == 1], pixels[mask == 3] = (200, 60, 60), (60, 200, 220)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def squad(count: int, seed: int = 0, unanswerable: bool = True) -> dict[str, Any]:
    """Return questions in SQuAD's layout: which word tells the mood of a sentence; of every fifth, none does."""
    articles = []
    for number, (text, _) in enumerate(sentiment_rows(count, seed)):
        found = re.search(r"\b(good|fine|great|bad|poor|awful)\b", text)
        assert found is not None
        silent = unanswerable and number % 5 == 4
        context = text.replace(found[0], "stone") if silent else text
        answers = [] if silent else [{"text": found[0], "answer_start": found.start()}]
        asked = {"id": f"q{number}", "question": "Was the king good?", "answers": answers, "is_impossible": silent}
        articles.append({"title": f"Article {number}", "paragraphs": [{"context": context, "qas": [asked]}]})
    return {"version": "v2.0", "data": articles}


LM = [
    "train", "text-generation", "--preset", "gpt2-nano", "--model.vocab-size", "300", "--train.sequence", "32",
    "--train.batch", "4", "--generate.max-tokens", "2", "--train.precision", "fp32",
]  # fmt: skip
CLASSIFY = ["train", "text-classification", "--train.batch", "8", "--train.precision", "fp32", "--optim.lr", "1e-3"]


#: Runs the command line.
COMMAND = "import sys; from burnish.cli import main; main(sys.argv[1:])"


def burnish(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, fresh: bool = False
) -> subprocess.CompletedProcess:
    """Run the command line and return the finished process, with `fresh` or another environment a wholly new one."""
    if not (fresh or env):
        return forks().run(COMMAND, *arguments, cwd=cwd)
    return subprocess.run(
        [sys.executable, "-m", "burnish", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def result_of(folder: Path) -> dict[str, object]:
    """Return what must be equal in two runs that are identical: weights, optimizer, losses, figures."""
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds", "speed"):
        metrics.pop(name, None)
    return {
        "step": newest.name,
        "weights": digest(folder / "model" / "model.safetensors"),
        "checkpoint": digest(newest / "model.safetensors"),
        "optimizer": digest(newest / "optimizer.safetensors"),
        "losses": [(line["step"], line["loss"]) for line in lines if "loss" in line],
        "evaluations": [(line["step"], line["metrics"]) for line in lines if "evaluation" in line],
        "metrics": metrics,
    }


def session_of(task: str, folder: Path, /, **settings: Any) -> Session:
    """Return a run whose model is built and that could train; nothing is written."""
    from burnish.api import resolve
    from burnish.run import RunFolder
    from burnish.session import Session

    config, task_class, _ = resolve(task, {"run": {"dir": str(folder)}, **settings})
    session = Session(config, task_class, RunFolder(folder), Terminal(quiet=True))
    session.prepare()
    session.build()
    return session


def trained(task: str, folder: Path, /, **settings: Any) -> Session:
    """Return a run that has trained to its end, or goes on to it; without the report and the exported model."""
    from burnish.engine.guard import StopSignal

    session = session_of(task, folder, **settings)
    with session.folder.locked():
        session.begin()
        session.train(StopSignal())
        session.terminal.close()
    return session


class After(Terminal):
    """Prints nothing, and after a step does something to the run that it belongs to: ask it to stop, by SIGTERM."""

    def __init__(self, step: int, action: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM)):
        super().__init__(quiet=True)
        self.step, self.action = step, action

    def advance(self, done: int, note: str = "") -> None:
        if done == self.step:
            self.action()


def weights_of(session: Session) -> dict[str, Any]:
    """Return copies of a run's exact weights."""
    return {name: value.detach().clone() for name, value in session.job.weights.exact.items()}


def said_by_card(folder: Path, cwd: Path | None = None) -> str:
    """Run the code that a run's card gives and return what the last of it, for plain transformers, prints.

    Args:
        cwd: where it runs, and its files lie.
    """
    done = None
    for code in re.findall(r"```python\n(.*?)```", (folder / "card.md").read_text(), re.S):
        done = forks().run(code, cwd=cwd)
        assert done.returncode == 0, done.stderr
    assert done is not None
    return done.stdout


def apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the relative global L2 distance of named tensors."""
    assert found.keys() == wanted.keys()
    squares = sum(float((found[name].double() - wanted[name].double()).square().sum()) for name in wanted)
    return (squares / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5
