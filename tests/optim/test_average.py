"""The running mean of the weights: what it is, that it is what people get, and that a stopped run goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import burnish
from burnish.config import OptimSettings
from burnish.engine import checkpoint
from burnish.optim.optimizers import Optimizers
from burnish.terminal import Terminal
from helpers import result_of

QUIET = Terminal(quiet=True)


def test_it_is_the_mean_that_the_formula_says() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    made = Optimizers(model, OptimSettings(name="sgd", average=0.6), 0.1)
    wanted = None
    for step in range(1, 30):
        model(torch.randn(4, 3)).square().sum().backward()
        made.step()
        made.zero_grad()
        before = wanted if wanted is not None else model.weight.detach().clone()
        decay = min(0.6, (1 + step) / (10 + step))
        wanted = decay * before + (1 - decay) * model.weight.detach()
    own, published = model.weight.detach().clone(), []
    with made.averaged(lambda: published.append(model.weight.detach().clone())):
        assert torch.allclose(model.weight, wanted, atol=1e-6) and not torch.allclose(wanted, own)
    assert torch.equal(model.weight, own) and len(published) == 2 and torch.equal(published[1], own)


def test_without_it_nothing_changes() -> None:
    model = nn.Linear(3, 2)
    made = Optimizers(model, OptimSettings(), 0.1)
    with made.averaged(lambda: pytest.fail("nothing is to be published")):
        pass
    assert len(made.all) == 1


def toy(folder: Path, precision: str = "fp32") -> dict[str, Any]:
    return {
        "model": {"preset": "vit-nano", "image_size": 16},
        "data": {"train": str(folder)},
        "train": {"length": "30 steps", "batch": 8, "precision": precision},
        "optim": {"lr": 2e-3, "average": 0.9},
        "checkpoint": {"every": 10, "keep": 9},
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_what_is_exported_and_measured(precision: str, shapes_folder: Path, tmp_path: Path) -> None:
    given = toy(shapes_folder, precision)
    run = burnish.train("image-classification", terminal=QUIET, run={"dir": str(tmp_path / "run")}, **given)
    last = checkpoint.path_of(run.folder.checkpoints, 30)
    state, exported = checkpoint.read(last, "optimizer"), load_file(run.folder.model / "model.safetensors")
    weights = checkpoint.read(last, "model")
    name = "classifier.weight"
    assert torch.equal(exported[name], state[f"{name}/average"]) and not torch.equal(exported[name], weights[name])
    assert run.evaluate()["metrics"] == pytest.approx(run.metrics["validation"], rel=1e-5)


def test_a_stopped_run_goes_on_with_it(shapes_folder: Path, tmp_path: Path) -> None:
    whole = burnish.train(
        "image-classification", terminal=QUIET, run={"dir": str(tmp_path / "a")}, **toy(shapes_folder)
    )
    again = burnish.train(
        "image-classification", terminal=QUIET, run={"dir": str(tmp_path / "b")}, **toy(shapes_folder)
    )
    checkpoint.retire(checkpoint.path_of(again.folder.checkpoints, 30))
    again.folder.metrics.unlink()
    resumed = burnish.train(
        "image-classification", terminal=QUIET, run={"dir": str(tmp_path / "b")}, **toy(shapes_folder)
    )
    assert result_of(resumed.path) == result_of(whole.path)
