"""B5: the order of data is a pure function of seed, epoch and position; resuming anywhere changes nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.data.loader import Loader
from burnish.data.order import permutation, rows_of_step
from burnish.task import Batch


class _Rows:
    """Stands for a store: the loader needs lengths and rows only."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": np.arange(self.length(index))}

    def length(self, index: int) -> int:
        return 1 + index % 7

    def lengths(self, rows: list[int]) -> np.ndarray:
        return np.array([self.length(row) for row in rows])


class _Task:
    varies = True
    takes_next = False

    def vary(self, example: dict, draw: int, following: dict | None = None) -> dict:
        return example

    def collate(self, examples: list) -> Batch:
        return Batch({}, {}, {"loss": len(examples)})


@given(
    size=st.integers(1, 500),
    batch=st.integers(1, 16),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**40),
    workers=st.sampled_from([0, 1, 2, 4]),
    stops=st.lists(st.floats(0, 1), min_size=3, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_resuming_repeats_and_drops_nothing(
    size: int, batch: int, epochs: int, seed: int, workers: int, stops: list[float]
) -> None:
    total = size * epochs
    steps = -(-total // batch)
    same = {"seed": seed, "batch": batch, "size": size, "total_rows": total}
    expected = [[row for row, _ in rows_of_step(step, **same)] for step in range(steps)]
    loader = Loader(_Rows(size), _Task(), seed, batch, max(1, batch // 2), total, workers)  # type: ignore[arg-type]
    edges = sorted({0, steps, *(int(stop * steps) for stop in stops)})
    seen = []
    for first, last in pairwise(edges):
        iterator = loader.steps(first, steps)  # each sitting prepares ahead, and is cut off
        seen += [sorted(row for micro in next(iterator) for row in micro.rows) for _ in range(first, last)]
    assert seen == [sorted(rows) for rows in expected]
    flat = [row for rows in expected for row in rows]
    for epoch in range(epochs):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(permutation(seed, epoch, 100)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_order_is_what_it_always_was() -> None:
    """The order belongs to a run's result: a change of this list would silently change every resumed run."""
    assert permutation(0, 0, 8).tolist() == [6, 7, 1, 2, 0, 5, 3, 4]
    assert permutation(7, 3, 8).tolist() == [2, 3, 7, 4, 6, 0, 1, 5]
    first = permutation(7, 1, 1000)
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
