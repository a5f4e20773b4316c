"""Runs on a GPU against the same runs on the processor; waits for a machine that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import trained


def losses(folder: Path, device: str, **settings: Any) -> list[float]:
    session = trained(
        "text-classification",
        folder,
        **{**settings, "run": {"dir": str(folder), "device": device}},
    )
    assert session.plan.arrangement == "packed"
    return [line["loss"] for line in session.folder.log_lines() if "loss" in line]


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [0, 1, "all"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_gpu_learns_what_a_processor_learns(
    layers: Any, dropout: float, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    """Rows end to end, frozen layers replayed or not; dropout draws other numbers, so its losses are only near."""
    settings = {
        "model": str(tiny_bert),
        "data": str(reviews_file),
        "freeze": {"layers": layers},
        "train": {"length": "30 steps", "batch": 8, "precision": "fp32", "dropout": dropout},
    }
    found, wanted = (losses(tmp_path / device, device, **settings) for device in ("cuda", "cpu"))
    assert found == pytest.approx(wanted, rel=0.3 if dropout else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["on", "off", "graphs"])
@pytest.mark.parametrize("micro_batch", [8, 3])
def test_bfloat16_on_a_gpu_is_near_float32(
    compile: str, micro_batch: int, tiny_bert: Path, reviews_file: Path, tmp_path: Path
) -> None:
    settings = {"model": str(tiny_bert), "data": str(reviews_file)}
    train = {"length": "30 steps", "batch": 8, "micro_batch": micro_batch, "dropout": 0.0}
    exact = losses(tmp_path / "fp32", "cuda", **settings, train={**train, "precision": "fp32"})
    rounded = losses(tmp_path / "bf16", "cuda", **settings, train={**train, "precision": "bf16", "compile": compile})
    assert rounded == pytest.approx(exact, rel=0.02)
