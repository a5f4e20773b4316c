"""Micro-batches of each step, prepared by threads ahead of time and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from burnish.data.order import rows_of_step
from burnish.data.store import Store
from burnish.task import Batch, Task


@dataclass(frozen=True)
class Loader:
    """Yields the micro-batches of each step of a run.

    Which rows make a step depends on seed, batch and position alone; `micro_batch` and `workers` only arrange them.
    """

    store: Store
    task: Task
    seed: int
    batch: int
    micro_batch: int
    total_rows: int
    workers: int

    def rows(self, step: int) -> list[int]:
        """Return the rows of step `step` (from 0) in the order of the data."""
        return rows_of_step(step, seed=self.seed, batch=self.batch, size=len(self.store), total_rows=self.total_rows)

    def step(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step`: its rows by length, so that little is padded."""
        return collate(self.store, self.task, self.rows(step), self.micro_batch)

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the steps `first` to `last - 1`, preparing the next ones meanwhile."""
        if self.workers == 0:
            yield from (self.step(step) for step in range(first, last))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            waiting: deque[Future[list[Batch]]] = deque()
            ahead = self.workers + 1
            try:
                for step in range(first, last):
                    while len(waiting) < ahead and step + len(waiting) < last:
                        waiting.append(pool.submit(self.step, step + len(waiting)))
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def collate(store: Store, task: Task, rows: Sequence[int], size: int) -> list[Batch]:
    """Return rows as batches of at most `size`, rows of like length together; each batch names its rows."""
    examples = [(row, store[row]) for row in rows]
    examples.sort(key=lambda pair: len(pair[1]["input_ids"]))
    batches = []
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        batch = task.collate([example for _, example in part])
        batch.rows = [row for row, _ in part]
        batches.append(batch)
    return batches
