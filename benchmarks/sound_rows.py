"""Sounds as transformers' example script gives them to Trainer: their spectra made once, before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.session import Session
from burnish.tasks.sounds import samples_of

#: A target that is not scored, as transformers has it.
_IGNORED = -100


class Sounds:
    """The training rows of a session as a data set of Trainer's.

    Args:
        session: prepared, of a model that writes.
    """

    def __init__(self, session: Session):
        task: Any = session.task
        self._before, self._end = task.before, task.words.eos_token_id
        store = session.stores["train"]
        examples = [store[number] for number in range(len(store))]
        self.rows = [(task.features(samples_of(example)), example["labels"].tolist()) for example in examples]
        self._heard = task.input_name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[np.ndarray, list[int]]:
        return self.rows[number]

    def together(self, rows: Sequence[tuple[np.ndarray, list[int]]]) -> dict[str, Any]:
        """Return rows as one batch, the tokens filled up at their end."""
        import torch

        longest = max(len(labels) for _, labels in rows)
        skipped = [_IGNORED] * (len(self._before) - 1)
        written = [[*self._before, *labels[:-1], *[self._end] * (longest - len(labels))] for _, labels in rows]
        targets = [[*skipped, *labels, *[_IGNORED] * (longest - len(labels))] for _, labels in rows]
        return {
            self._heard: torch.from_numpy(np.stack([features for features, _ in rows])),
            "decoder_input_ids": torch.tensor(written),
            "labels": torch.tensor(targets),
        }
