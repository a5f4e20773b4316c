"""Frozen layers computed once for each row: what a run does with them, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from burnish.config import FreezeSettings
from burnish.data.loader import Loader
from burnish.data.store import Store
from burnish.engine.fit import Fit
from burnish.engine.prefix_cache import POSITIONS_AT_ONCE, CacheUnusable, Prefix, PrefixCache, fill, key_of, prefix_work
from burnish.env import cache_dir, free_memory_bytes
from burnish.ops.linear import packed
from burnish.run import home_path
from burnish.task import Task
from burnish.terminal import Terminal


class Replays:
    """What the frozen layers of a run's model give for the rows of its splits.

    Args:
        fit: the built model.
    """

    def __init__(self, fit: Fit, task: Task, stores: Mapping[str, Store], device: str, terminal: Terminal):
        self.fit, self.task, self.stores, self.device, self.terminal = fit, task, stores, device, terminal
        self.found: dict[str, Prefix] = {}
        """By split, what can be replayed."""
        self._cache: PrefixCache | None = None
        self._loader: Loader | None = None

    def open(self, freeze: FreezeSettings, precision: str, loader: Loader, epochs: float, refusal: str | None) -> None:
        """Open the cache and compute what is missing of the training rows; or say why there is none.

        Args:
            loader: of the training rows.
            epochs: how often the run sees each.
            refusal: why the layers have to be computed in every step, if that is known already.
        """
        stack, where = self.fit.stack, freeze.cache
        if not (self.fit.frozen or refusal):
            return
        refusal = refusal or ("freeze.cache is off" if where == "off" else self.fit.prefix_refusal(freeze.views))
        if refusal or stack is None:
            self.terminal.say(f"frozen layers: computed in every step; {refusal}")
            return
        root = cache_dir() / "prefix" if where == "auto" else home_path(where)
        folder = root / key_of(stack, self.fit.model, precision)
        self._loader = loader if self.task.varies else None
        if where == "auto" and epochs <= self._views and not folder.exists():
            self.terminal.say("frozen layers: not stored, since nothing is seen twice")
            return
        try:
            self._cache = PrefixCache.open(folder, stack.width, stack.kind)
        except CacheUnusable as error:
            self.terminal.say(f"frozen layers: computed in every step, since {error}", style="yellow")
            return
        rows = loader.seen_rows()
        with self.terminal.progress("frozen layers", len(rows) * self._views):
            self.fill("train", rows, epochs / self._views, self.terminal.advance)

    @property
    def _views(self) -> int:
        """Variations of each training row."""
        return self._loader.views if self._loader else 1

    def fill(
        self, split: str, rows: Sequence[int], epochs: float, progress: Callable[[int], None] = lambda done: None
    ) -> Prefix | None:
        """Return the layers' output for rows of a split, computed where it is not stored; None if it cannot be stored."""
        if self._cache is None or self.fit.stack is None:
            return None
        work = prefix_work(self.fit.stack, self.fit.forward)
        try:
            with packed(self.fit.model, POSITIONS_AT_ONCE, free_memory_bytes() // 4):
                given = self._cache, work, self.task, self.stores[split], rows, self.device, progress
                loader = self._loader if split == "train" else None
                varied = partial(loader.varied, following=0) if loader else None
                prefix, filled = fill(*given, loader.views if loader else 1, varied)
        except CacheUnusable as error:
            self._cache = None
            self.terminal.say(f"frozen layers: computed in every step, since {error}", style="yellow")
            return None
        if split not in self.found:
            self.terminal.say(f"frozen layers of {len(rows):,} {split} rows: {filled.sentence(epochs)}")
        self.found[split] = prefix
        return prefix
