"""The rows every side of a benchmark gets: burnish's own split of a recipe's data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from burnish.api import resolve
from burnish.config import Config
from burnish.data.prepare import find_rows
from burnish.task import Row
from burnish.tasks.classification import label_name

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"


@dataclass(frozen=True)
class Split:
    """A recipe's settings and its rows, training and held out, in the order burnish reads them."""

    config: Config
    train: list[Row]
    held_out: list[Row]


def read_split(recipe: Path | str) -> Split:
    """Return the rows burnish would train on and hold out.

    Raises:
        ValueError: the recipe holds nothing out.
    """
    config, task, _ = resolve(str(recipe), {})
    splits = find_rows(config, task)
    if splits.validation is None:
        raise ValueError(f"{recipe}: holds out no rows, so there is nothing to compare on")
    return Split(config, list(splits.train), list(splits.validation))


def texts(rows: Iterable[Row]) -> list[str]:
    """Return the text of each row."""
    return [row.values["text"] for row in rows]


def labels(rows: Iterable[Row]) -> list[str]:
    """Return the label of each row, named as burnish names it."""
    return [label_name(row) for row in rows]


def stream(rows: Iterable[Row]) -> str:
    """Return the rows laid end to end, as the task text-generation reads them."""
    return "".join(texts(rows))


def digest(rows: Iterable[Row]) -> str:
    """Return a short hash of texts and labels in their order: equal if and only if the rows are."""
    found = hashlib.sha256()
    for row in rows:
        label = label_name(row) if "label" in row.values else ""
        found.update(repr((row.values["text"], label)).encode())
    return found.hexdigest()[:16]


@contextmanager
def own_cache(at: Path | None = None) -> Iterator[Path]:
    """Give burnish a cache of its own while the block runs; yields an empty folder that is removed after it.

    Args:
        at: the cache's folder; None: a new one, so that nothing is prepared already.
    """
    before = os.environ.get("BURNISH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BURNISH_CACHE"] = str(at or Path(folder) / "cache")
        try:
            yield Path(folder)
        finally:
            os.environ.pop("BURNISH_CACHE")
            if before is not None:
                os.environ["BURNISH_CACHE"] = before
