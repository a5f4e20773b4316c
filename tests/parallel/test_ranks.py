"""Several ranks: the same rows, the same learning, one end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import strange_worker
import torch
from safetensors.torch import load_file

import burnish
from burnish.api import Run
from burnish.cli import main
from burnish.data.loader import Loader
from burnish.engine import checkpoint, loop
from burnish.errors import GuardError, Stopped, UserError
from burnish.models.adapter import merged
from burnish.parallel import launch
from burnish.session import Session
from burnish.terminal import Terminal
from helpers import After, apart, result_of, sentiment_rows, session_of

TOLERANCE = 1e-5
"""Relative: of each logged loss, and as global L2 of all that a run changed in the weights; float32."""


@pytest.fixture(scope="module")
def ragged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a prompt and a text, of very different lengths."""
    path = tmp_path_factory.mktemp("ragged") / "ragged.jsonl"
    rows = [
        {"prompt": "It " + "was " * (number % 9), "text": text} for number, (text, _) in enumerate(sentiment_rows(70))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(ragged_file: Path, folder: Path, **groups: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a run of six steps of five rows, two at once, the last step of three."""
    found: dict[str, Any] = {
        "model": {"preset": "gpt2-nano", "vocab_size": 300},
        "data": {"train": str(ragged_file), "prompt": "prompt"},
        "train": {
            "batch": 5, "micro_batch": 2, "sequence": 64, "length": "28 rows", "precision": "fp32",
            "evaluate_every": "3 steps",
        },
        "optim": {"lr": 1e-2},
        "generate": {"max_tokens": 2},
        "checkpoint": {"every": "1000 steps"},
        "run": {"dir": str(folder)},
    }  # fmt: skip
    for group, values in groups.items():
        found[group] = {**found.get(group, {}), **values}
    return found


def train(ragged_file: Path, folder: Path, terminal: Terminal | None = None, /, **groups: dict[str, Any]) -> Run:
    settings = settings_of(ragged_file, folder, **groups)
    run = burnish.train("text-generation", terminal=terminal or Terminal(quiet=True), **settings)
    assert isinstance(run, Run)
    return run


# -- the rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("batch", "micro_batch"), [(5, 2), (7, 7), (2, 1), (1, 1)])
def test_the_ranks_rows_are_each_steps_rows(
    ragged_file: Path, tmp_path: Path, padded: bool, batch: int, micro_batch: int
) -> None:
    """None twice, none left out, with a short last step and with more ranks than rows."""
    session = session_in(ragged_file, tmp_path / "none")
    store, task = session.stores["train"], session.task
    total = 3 * batch + 1
    shares: dict[int, list[Loader]] = {
        ranks: [
            Loader(store, task, 4, batch, micro_batch, total, 0, padded=padded, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        for ranks in (1, 2, 3)
    }
    idle = 0
    for step in range(4):
        (alone,) = shares[1]
        wanted = sorted(row for one in alone.step(step) for row in one.rows)
        targets = sum(one.weights["loss"] for one in alone.step(step))
        assert len(wanted) == (1 if step == 3 else batch) and wanted == sorted(alone.rows(step))
        for ranks, loaders in shares.items():
            batches = [loader.step(step) for loader in loaders]
            assert len({len(own) for own in batches}) == 1  # all compute as often, or they would wait for ever
            counted = [one for own in batches for one in own if not one.idle]
            assert sorted(row for one in counted for row in one.rows) == wanted, ranks
            assert sum(one.weights["loss"] for own in batches for one in own) == targets
            assert all(len(one.rows) <= micro_batch for own in batches for one in own)
            waiting = [one for own in batches for one in own if one.idle]
            assert all(set(one.weights.values()) == {0.0} and len(one.rows) == 1 for one in waiting)
            idle += len(waiting)
    assert idle > 0  # the short step leaves one row to three ranks


def session_in(ragged_file: Path, folder: Path) -> Session:
    settings = settings_of(ragged_file, folder)
    del settings["run"]
    return session_of("text-generation", folder, **settings)


# -- what is learned ---------------------------------------------------------------------------------------------------


def changed(run: Run, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    final = load_file(run.path / "model" / "model.safetensors")
    return {name: final[name] - start[name] for name in final}


def differences(found: Run, wanted: Run, start: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return how far the losses (the worst step's, relative) and the changes of the weights (L2, relative) lie apart."""
    losses = [[line["loss"] for line in run.history if "loss" in line] for run in (found, wanted)]
    worst = max(abs(one / other - 1) for one, other in zip(*losses, strict=True))
    return worst, apart(changed(found, start), changed(wanted, start))


@pytest.fixture
def start(ragged_file: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    session = session_in(ragged_file, tmp_path / "none")
    return {name: value.detach().clone() for name, value in session.fit.model.named_parameters()}


@pytest.mark.parametrize(("packing", "optimizer"), [("auto", "adamw"), ("off", "sgd")])
def test_two_ranks_learn_what_one_learns(
    ragged_file: Path, tmp_path: Path, start: dict[str, torch.Tensor], packing: str, optimizer: str
) -> None:
    # With its usual eps Adam makes steps of gradients that are nothing but rounding, such as those of the key biases.
    optim = {"name": optimizer, "eps": 1e-6, "average": 0.7 if packing == "off" else 0.0}
    groups: dict[str, Any] = {"optim": optim, "train": {"packing": packing}}
    one = train(ragged_file, tmp_path / "one", **groups)
    two = train(ragged_file, tmp_path / "two", **groups, parallel={"ranks": 2})
    plan = json.loads((two.path / "plan.json").read_text())
    assert plan["arrangement"] == ("padded" if packing == "off" else "packed")
    losses, weights = differences(two, one, start)
    assert losses <= TOLERANCE and weights <= TOLERANCE
    for ours, other in zip(two.history, one.history, strict=True):
        for name in ("step", "rows", "targets", "positions", "lr", "epoch"):
            assert ours.get(name) == other.get(name)
        if "metrics" in other:
            assert ours["metrics"] == pytest.approx(other["metrics"], rel=TOLERANCE)
    assert two.metrics["validation"] == pytest.approx(one.metrics["validation"], rel=TOLERANCE)


@pytest.mark.parametrize("task", ["sentence-similarity", "preference-tuning"])
def test_two_ranks_compare_and_ask_as_one_does(
    alike_file: Path, pairs_file: Path, tiny_bert: Path, tmp_path: Path, task: str
) -> None:
    """Texts are compared with those of the other rank too; what a frozen model answered is read by both."""
    given: dict[str, Any] = {
        "sentence-similarity": {
            "model": {"path": str(tiny_bert)}, "data": {"train": str(alike_file)}, "train": {"dropout": 0.0},
        },
        "preference-tuning": {
            "model": {"preset": "gpt2-nano", "vocab_size": 300}, "data": {"train": str(pairs_file), "prompt": "prompt"},
            "train": {"sequence": 64}, "generate": {"max_tokens": 2},
        },
    }[task]  # fmt: skip
    given["train"] |= {
        "batch": 5,
        "micro_batch": 2,
        "length": "18 rows",
        "precision": "fp32",
        "evaluate_every": "2 steps",
    }
    given["optim"] = {"lr": 1e-3, "eps": 1e-6}
    session = session_of(task, tmp_path / "none", **given)
    start = {name: value.detach().clone() for name, value in session.fit.model.named_parameters()}
    runs = [
        burnish.train(
            task, terminal=Terminal(quiet=True), **given, run={"dir": str(tmp_path / f"{ranks}")}, parallel={"ranks": ranks}
        )
        for ranks in (1, 2)
    ]  # fmt: skip
    one, two = runs
    assert isinstance(one, Run) and isinstance(two, Run)
    losses, weights = differences(two, one, start)
    assert losses <= TOLERANCE and weights <= 2 * TOLERANCE
    assert two.metrics["validation"] == pytest.approx(one.metrics["validation"], rel=1e-4)


def test_two_ranks_train_the_rows_of_new_tokens_as_one_does(
    reviews_file: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """The table of which they are rows is spread over the ranks, and so are they, and the matrices of an adapter."""
    given: dict[str, Any] = {
        "model": {"path": str(tiny_bert), "added_tokens": ["<user>"]},
        "data": str(reviews_file),
        "adapter": {"kind": "lora"},
        "train": {"batch": 5, "micro_batch": 2, "length": "18 rows", "precision": "fp32", "dropout": 0.0},
        "optim": {"lr": 1e-3, "eps": 1e-6},
    }
    session = session_of("text-classification", tmp_path / "none", **given)
    start = merged(session.fit.model)
    assert start is not None
    one, two = (
        burnish.train(
            "text-classification",
            terminal=Terminal(quiet=True),
            **given,
            run={"dir": str(tmp_path / f"{ranks}")},
            parallel={"ranks": ranks},
        )
        for ranks in (1, 2)
    )
    losses, weights = differences(two, one, start)
    assert losses <= TOLERANCE and weights <= 2 * TOLERANCE


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the other ranks do something wrong (strange_worker.py)."""
    real = launch._start

    def use(way: str) -> None:
        monkeypatch.setenv("STRANGE", way)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setattr(launch, "_start", lambda module, *arguments: real("strange_worker", *arguments))

    return use


def test_a_mean_over_ranks_is_seen(
    ragged_file: Path, tmp_path: Path, start: dict[str, torch.Tensor], strange: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The gradient as FSDP2 gives it by itself, averaged over the ranks: half of what it should be."""
    groups: dict[str, Any] = {"optim": {"name": "sgd", "clip": 0.0}, "train": {"length": "10 rows"}}
    one = train(ragged_file, tmp_path / "one", **groups)
    strange("averaging")
    monkeypatch.setattr(loop, "accumulate", strange_worker.averaging(loop.accumulate))
    two = train(ragged_file, tmp_path / "two", **groups, parallel={"ranks": 2})
    losses, weights = differences(two, one, start)
    assert weights == pytest.approx(0.5, rel=0.1) and losses > 100 * TOLERANCE


def test_bf16_keeps_float32_weights_behind_the_shards(ragged_file: Path, tmp_path: Path) -> None:
    """Two ranks in bfloat16 lie beside one in float32, within the rounding; what they save is not rounded."""
    groups: dict[str, Any] = {"train": {"length": "15 rows"}}
    one = train(ragged_file, tmp_path / "one", **groups)
    groups["train"]["precision"] = "bf16"
    two = train(ragged_file, tmp_path / "two", **groups, parallel={"ranks": 2})
    for ours, other in zip(two.history, one.history, strict=True):
        if "loss" in other:
            assert ours["loss"] == pytest.approx(other["loss"], rel=0.005)
    final = load_file(two.path / "model" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in final.values())
    assert sum(torch.equal(value, value.bfloat16().float()) for value in final.values()) < len(final) / 2


# -- stops, deaths, refusals -------------------------------------------------------------------------------------------


@pytest.fixture
def command(ragged_file: Path) -> list[str]:
    return [
        "train", "text-generation", "--preset", "gpt2-nano", "--model.vocab-size", "300", "--data.train", str(ragged_file),
        "--data.prompt", "prompt", "--train.sequence", "64", "--train.batch", "5", "--train.micro-batch", "2",
        "--train.length", "40 steps", "--train.precision", "fp32", "--train.evaluate-every", "20 steps",
        "--generate.max-tokens", "2", "--checkpoint.every", "4 steps", "--parallel.ranks", "2",
    ]  # fmt: skip


class Started:
    """A run of two ranks by the command line; `children` are the processes it started."""

    def __init__(self, command: list[str], folder: Path):
        arguments = [sys.executable, "-m", "burnish", *command, "--run.dir", str(folder)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.folder = folder
        self.children: list[psutil.Process] = []

    def wait_for_step(self, step: int) -> None:
        deadline, log = time.monotonic() + 120, self.folder / "metrics.jsonl"
        while not log.exists() or f'"step": {step},' not in log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.01)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def ended(self, within: float = 60) -> tuple[int, str]:
        """Return exit code and errors, and make sure that no process is left."""
        _, errors = self.process.communicate(timeout=within)
        _, left = psutil.wait_procs(self.children, timeout=10)
        for child in left:
            child.kill()
        assert not left
        return self.process.returncode, errors


def test_a_run_of_two_ranks_survives_death_and_stop_bit_for_bit(ragged_file: Path, tmp_path: Path) -> None:
    """Rank 1 is killed, then the run is stopped by a signal, then it ends: equal to one that nothing happened to."""
    groups: dict[str, Any] = {
        "train": {"length": "24 steps", "evaluate_every": "12 steps"},
        "checkpoint": {"every": "4 steps"},
        "parallel": {"ranks": 2},
    }
    folder = tmp_path / "run"

    def kill() -> None:
        (child,) = (one for one in psutil.Process().children() if "burnish.worker" in one.cmdline())
        child.kill()

    with pytest.raises(GuardError) as caught:
        train(ragged_file, folder, After(9, kill), **groups)
    assert str(caught.value) == (
        "Rank 1 was ended by SIGKILL, perhaps for want of memory. The same command continues the run."
    )
    at = checkpoint.steps(folder / "checkpoints")[-1]
    assert at in (4, 8)
    with pytest.raises(Stopped, match=rf"SIGTERM: saved at step {at + 6}\."):
        train(ragged_file, folder, After(at + 6), **groups)
    assert checkpoint.steps(folder / "checkpoints")[-1] == at + 6

    train(ragged_file, folder, **groups)
    assert f"continuing after step {at + 6}" in (folder / "log.txt").read_text()
    assert result_of(folder) == result_of(train(ragged_file, tmp_path / "whole", **groups).path)


def test_rank_0_takes_the_others_along(command: list[str], tmp_path: Path) -> None:
    started = Started(["5000 steps" if word == "40 steps" else word for word in command], tmp_path / "run")
    started.wait_for_step(2)
    assert len(started.children) == 1
    started.process.kill()
    assert started.ended()[0] == -signal.SIGKILL


@pytest.mark.parametrize("way", ["absent", "failing"])
def test_a_rank_that_fails_is_named_with_its_last_words(
    ragged_file: Path, tmp_path: Path, strange: Callable[[str], None], way: str
) -> None:
    """At once, whether it is still building its model or training already; nobody waits for it."""
    strange(way)
    began = time.monotonic()
    with pytest.raises(GuardError) as caught:
        train(ragged_file, tmp_path / "run", parallel={"ranks": 2})
    assert str(caught.value).startswith("Rank 1 ended with an error: ")
    assert str(caught.value).endswith(strange_worker.LAST_WORDS)
    assert time.monotonic() - began < 60
    assert not [child for child in psutil.Process().children() if "strange_worker" in child.cmdline()]


def test_what_several_ranks_cannot_do_is_refused(
    ragged_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--optim.name", "muon", "--run.dir", str(tmp_path / "muon")])
    assert ended.value.code == UserError.exit_code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("burnish: optim.name: muon is not supported with --parallel.ranks 2. Give ")
    assert not (tmp_path / "muon").exists()


def test_another_number_of_ranks_is_another_recipe(ragged_file: Path, tmp_path: Path) -> None:
    session = session_in(ragged_file, tmp_path / "run")
    with session.folder.locked():
        session.begin()
        session.terminal.close()
    with pytest.raises(UserError, match=r"holds a run of another recipe: parallel\.ranks"):
        train(ragged_file, tmp_path / "run", parallel={"ranks": 2})
