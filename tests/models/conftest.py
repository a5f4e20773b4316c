"""Models that tests of several files begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

import burnish
from burnish.terminal import Terminal


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A small GPT-2 with its tokenizer, trained for two steps from scratch."""
    run = burnish.train(
        "text-generation",
        terminal=Terminal(quiet=True),
        preset="gpt2-nano",
        model={"vocab_size": 300},
        data=str(text_file),
        train={"length": "2 steps", "batch": 4, "sequence": 32, "precision": "fp32"},
        run={"dir": str(tmp_path_factory.mktemp("decoder") / "base")},
    )
    assert isinstance(run, burnish.Run)
    return run.path / "model"
