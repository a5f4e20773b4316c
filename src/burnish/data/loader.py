"""Micro-batches of each step, prepared by threads ahead of time and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from burnish.data.order import draw, rows_of_step
from burnish.data.store import Store
from burnish.task import Batch, Example, Task

#: What a micro-batch costs besides its positions, in positions; measured on a small encoder (docs/log.md).
CUT_COST = 180
#: Examples that a report shows as training sees them.
MOST_PREVIEWS = 16


@dataclass(frozen=True)
class Varied:
    """What decides how training sees a row."""

    draw: int
    following: int
    """The row that comes next in the step."""


@dataclass
class Loader:
    """Yields the micro-batches of each step of a run.

    Which rows make a step depends on seed, batch and position alone; `micro_batch`, `padded` and `workers` only arrange
    them.
    """

    store: Store
    task: Task
    seed: int
    batch: int
    micro_batch: int
    total_rows: int
    workers: int
    padded: bool = True
    """Whether rows of a micro-batch are filled up to the longest; else they are laid end to end, and only memory cuts."""
    prefix: Callable[[Sequence[int], Sequence[int]], Any] | None = None
    """What the model's frozen layers give for views of rows, if that is stored."""
    views: int = 0
    """How many variations of a row there are, one an epoch and then again; 0: another in every epoch."""
    group: int = 1
    """Rows that only a micro-batch together can compute, as norms over rows do; `micro_batch` is a multiple of it."""
    rank: int = 0
    ranks: int = 1
    """Each of several processes computes its share of every micro-batch."""

    def rows(self, step: int) -> list[int]:
        """Return the rows of step `step` (from 0) in the order of the data."""
        return [row for row, _ in self._rows(step)]

    def seen_rows(self) -> list[int]:
        """Return every row that the run sees, in the order of the data."""
        if self.total_rows >= len(self.store):
            return list(range(len(self.store)))
        steps = range(-(-self.total_rows // self.batch))
        return sorted({row for step in steps for row in self.rows(step)})

    def _rows(self, step: int) -> list[tuple[int, int]]:
        return rows_of_step(step, seed=self.seed, batch=self.batch, size=len(self.store), total_rows=self.total_rows)

    def step(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step`: its rows by length, cut where little is padded."""
        rows = self._rows(step)
        lengths = self.store.lengths([row for row, _ in rows])
        order = lengths.argsort(kind="stable").tolist()
        cost = CUT_COST if self.padded and self.group == 1 else None
        ends = cuts(lengths[order].tolist(), self.micro_batch * self.ranks, cost)
        return [self._share(rows, order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def _share(self, rows: list[tuple[int, int]], places: list[int]) -> Batch:
        """Return this rank's part of a micro-batch; every rank computes one, if need be on a row that counts nothing.

        Args:
            rows: of the step, each with its epoch.
            places: of those in the micro-batch.
        """
        own = places[self.rank :: self.ranks]
        chosen = own or places[:1]
        numbers, views = [rows[place][0] for place in chosen], [self.view(rows[place][1]) for place in chosen]
        stored = self.prefix(numbers, views) if self.prefix else None
        batch = collate(self.store, self.task, numbers, stored, self._varied(rows, chosen))
        if not own:
            batch.idle = True
            batch.weights = dict.fromkeys(batch.weights, 0.0)
        return batch

    def _varied(self, rows: list[tuple[int, int]], places: Sequence[int]) -> list[Varied] | None:
        if not self.task.varies:
            return None
        return [self.varied(rows[p][0], self.view(rows[p][1]), rows[(p + 1) % len(rows)][0]) for p in places]

    def view(self, epoch: int) -> int:
        """Return which variation of its rows an epoch sees."""
        return epoch % self.views if self.views else epoch

    def varied(self, row: int, view: int, following: int) -> Varied:
        """Return what decides how a view of a row looks."""
        return Varied(draw(self.seed, view, row), following)

    def seen(self, step: int, most: int) -> list[Example]:
        """Return the first examples of step `step` (from 0), as training sees them."""
        rows = self._rows(step)
        places = range(min(most, len(rows)))
        return examples_of(self.store, self.task, [row for row, _ in rows[:most]], self._varied(rows, places))

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


def cuts(lengths: Sequence[int], most: int, cost: int | None) -> list[int]:
    """Return where to cut rows sorted by length into micro-batches of at most `most` rows: the end of each.

    Args:
        cost: what a micro-batch costs beside its positions, in positions. Of all cuts the one with the least padded
            positions and costs is taken, found by dynamic programming. None: rows are not padded, so they are cut into
            as few micro-batches as `most` allows.

    >>> cuts([10, 10, 10, 500], most=4, cost=180)
    [3, 4]
    >>> cuts([10, 10, 10, 500], most=3, cost=None)
    [3, 4]
    """
    if cost is None:
        return [*range(most, len(lengths), most), len(lengths)]
    best = [0] + [0] * len(lengths)
    start_of = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        best[end], start_of[end] = min(
            (best[start] + (end - start) * longest + cost, start) for start in range(max(0, end - most), end)
        )
    ends = [len(lengths)] if lengths else []
    while ends and start_of[ends[-1]] > 0:
        ends.append(start_of[ends[-1]])
    return ends[::-1]


def collate(
    store: Store,
    task: Task,
    rows: Sequence[int],
    stored: Any = None,
    varied: Sequence[Varied] | None = None,
) -> Batch:
    """Return rows as one batch that names them.

    Args:
        stored: what the frozen layers give for them, if that is stored.
        varied: in training, how each row is varied (`Task.vary`); None: the rows as they are.
    """
    examples = examples_of(store, task, rows, varied)
    batch = task.collate(examples if stored is None else [task.replayed(example) for example in examples])
    batch.rows, batch.prefix = list(rows), stored
    return batch


def examples_of(store: Store, task: Task, rows: Sequence[int], varied: Sequence[Varied] | None) -> list[Example]:
    """Return rows as examples, as `collate` makes a batch of them."""
    examples = [store[row] for row in rows]
    if varied is None:
        return examples
    if not task.takes_next:
        return [task.vary(example, one.draw) for example, one in zip(examples, varied, strict=True)]
    following = [store[one.following] for one in varied]
    return [task.vary(e, one.draw, after) for e, one, after in zip(examples, varied, following, strict=True)]
