"""What a side is handed: a folder with a model, encoded rows in their order, and settings. Imports no burnish.

FOLDER/given.json        settings of the work, see `Given`
FOLDER/model/            what `from_pretrained` opens: weights, config, tokenizer
FOLDER/rows.jsonl        training rows, each {"input_ids": [...], "labels": ...}
FOLDER/train.jsonl       the same rows as text, for the works in which encoding them is part of what is measured
FOLDER/order.json        numbers of the rows of the whole run, batch after batch, over all epochs
FOLDER/held_out.jsonl    rows for the final loss
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORED = -100
Example = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """The settings of a work, in nobody's terms."""

    folder: Path
    causal: bool
    batch: int
    steps: int
    lr: float
    clip: float
    frozen: list[str]
    """Names of parameters that stay as they are."""
    encoded: bool
    """Whether a side gets token ids; else it encodes the texts itself."""
    pad_id: int
    untimed: int
    threads: int
    device: str

    @staticmethod
    def read(folder: str | Path) -> Given:
        """Return the settings in a folder."""
        return Given(Path(folder), **json.loads((Path(folder) / "given.json").read_text()))

    def rows(self, name: str = "rows") -> list[Example]:
        """Return the rows of a file."""
        with open(self.folder / f"{name}.jsonl", encoding="utf-8") as handle:
            return [json.loads(line) for line in handle]

    def order(self) -> list[int]:
        """Return which rows make the run, batch after batch."""
        return json.loads((self.folder / "order.json").read_text())

    def model(self, folder: Path | None = None) -> Any:
        """Return the model in float32, its frozen parameters frozen; from another folder, with other weights."""
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        kind = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModelForSequenceClassification
        model: Any = kind.from_pretrained(folder or self.folder / "model", dtype=torch.float32)
        frozen = set(self.frozen)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return model

    def tokenizer(self) -> Any:
        """Return the tokenizer of the model."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / "model")


class Tally:
    """What a side really worked on: rows, real tokens, targets, and positions computed, padding among them."""

    def __init__(self, untimed: int):
        self.untimed = untimed
        self.batches: list[dict[str, Any]] = []
        self.losses: list[Any] = []

    def add(self, inputs: dict[str, Any], loss: Any) -> None:
        """Keep the padded batch of a step and its loss; both are counted after the run, so that no step waits."""
        self.batches.append(
            {name: inputs[name] for name in ("input_ids", "labels", "attention_mask") if name in inputs}
        )
        self.losses.append(loss)

    def result(self) -> dict[str, Any]:
        """Return the counts and the loss of every step."""
        tokens = [int(batch.get("attention_mask", batch["input_ids"] >= 0).sum()) for batch in self.batches]
        return {
            "steps": len(self.batches),
            "rows": sum(len(batch["input_ids"]) for batch in self.batches),
            "tokens": sum(tokens),
            "timed_tokens": sum(tokens[self.untimed :]),
            "targets": sum(targets_in(batch["labels"]) for batch in self.batches),
            "positions": sum(batch["input_ids"].numel() for batch in self.batches),
            "losses": [float(loss) for loss in self.losses],
        }


def targets_in(labels: Any) -> int:
    """Return how many predictions are scored: one a row, or one a token that follows another and is not ignored."""
    return labels.numel() if labels.ndim == 1 else int((labels[:, 1:] != IGNORED).sum())


def held_out_loss(given: Given, weights: dict[str, Any]) -> float:
    """Return the mean loss of trained weights over the targets of the held-out rows, one row at a time, in float32."""
    import torch

    model = given.model().eval()
    model.load_state_dict(weights)
    total, targets = 0.0, 0
    with torch.inference_mode():
        for row in given.rows("held_out"):
            labels = torch.tensor([row["labels"]])
            loss = float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss)
            total += loss * targets_in(labels)
            targets += targets_in(labels)
    return total / targets


def versions() -> dict[str, str]:
    """Return the versions a side ran with."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "trl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
