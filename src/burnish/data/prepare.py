"""From settings to encoded stores: rows found, checked, split, learned from, tokenised once and kept by content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.config import Config
from burnish.data.chat import conversation
from burnish.data.hub import fetch_dataset
from burnish.data.pairs import texts_of
from burnish.data.rows import TEXTS, Holdout, Rows, Side, find_parts, refuse_broken
from burnish.data.store import Store
from burnish.env import cache_dir, fingerprint
from burnish.errors import UserError
from burnish.task import BrokenRow, Row, Task
from burnish.terminal import Terminal
from burnish.units import share


@dataclass
class Splits:
    """The rows of a run before encoding."""

    train: Iterable[Row] = ()
    validation: Iterable[Row] | None = None
    test: Iterable[Row] | None = None
    fingerprint: str = ""
    """Identifies content, columns and split: equal if and only if the rows are."""
    broken: list[BrokenRow] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """Of each split but training: how many of its images or sounds are training ones too, and the first of them."""
    counts: dict[str, int] = field(default_factory=dict)
    learned: Iterable[Row] = ()
    """Those of which a task learns what it must know of all, such as labels: of training, and where texts are written those
    held out too, since a letter that only one of them has is no fault of the row."""


@dataclass(frozen=True)
class _Both:
    """Rows after rows, as often as they are asked for."""

    first: Iterable[Row]
    second: Iterable[Row]

    def __iter__(self) -> Iterator[Row]:
        yield from self.first
        yield from self.second


def read_rows(
    names: Sequence[str], setting: str, config: Config, task: type[Task], extra: Sequence[str] = ()
) -> tuple[Rows, list[BrokenRow]]:
    """Return the rows behind files, folders and Hub ids, and the broken ones among them.

    Raises:
        UserError: files or columns are missing, or more rows are broken than allowed.
    """
    columns = task.columns(config.data)
    rows = Rows(
        find_parts(names, setting, fetch_dataset, task.reads, not columns.keys().isdisjoint(("objects", "mask"))),
        columns,
        extra,
    )
    return rows, rows.check(setting, config.data.on_bad_row)


def find_rows(config: Config, task: type[Task]) -> Splits:
    """Return the rows of each split, checked.

    Raises:
        UserError: files or columns are missing, rows are broken, or a split is empty.
    """
    data = config.data
    if not data.train:
        raise UserError("data.train: no data given. Give files, folders or Hub ids, such as --data.train reviews.csv.")
    if data.stratify and data.group:
        raise UserError("data.stratify: rows cannot be kept in groups and stratified at once; drop one of the two.")
    if data.stratify and "label" not in task.columns(data):
        raise UserError(f"data.stratify: {task.name} has no labels to stratify by.")
    found: dict[str, Rows] = {}
    broken: list[BrokenRow] = []
    for split, names in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if names:
            extra = [data.group] if data.group and split == "train" else []
            found[split], bad = read_rows(names, f"data.{split}", config, task, extra)
            broken += bad
    train: Iterable[Row] = found["train"]
    validation: Iterable[Row] | None = found.get("validation")
    part = share(data.holdout)
    if validation is None and part:
        holdout = Holdout(train, part, data.group, data.stratify)
        train, validation = Side(found["train"], holdout, False), Side(found["train"], holdout, True)
        for side, name in ((train, "training"), (validation, "validation")):
            if next(iter(side), None) is None:
                raise UserError(
                    f"data.holdout: a share of {data.holdout} leaves no {name} rows. Give more rows, another share, "
                    "or --data.validation."
                )
    key = fingerprint(
        {split: rows.fingerprint() for split, rows in found.items()},
        None if "validation" in found else [data.holdout, data.group, data.stratify],
    )
    counts = {
        name: sum(1 for _ in rows)
        for name, rows in (("train", train), ("validation", validation), ("test", found.get("test")))
        if rows is not None
    }
    twice = _twice(found, task.reads) if task.reads != "text" else []
    held_out = validation is not None and "validation" not in found
    learned = _Both(train, validation) if task.writes and held_out else train
    return Splits(train, validation, found.get("test"), key, broken, twice, counts, learned)


def _twice(found: Mapping[str, Rows], reads: str) -> list[str]:
    """Say which images or sounds of other splits are training ones too."""
    what, column = ("images", "image") if reads == "images" else ("sounds", "audio")
    others = [split for split in found if split != "train"]
    known = {row.values[column].digest: row.where for row in found["train"]} if others else {}
    said = []
    for split in others:
        pairs = [(row.where, known[digest]) for row in found[split] if (digest := row.values[column].digest) in known]
        if pairs:
            said.append(f"{len(pairs):,} {split} {what} are training {what} too, such as {pairs[0][0]} ({pairs[0][1]})")
    return said


def encode(
    config: Config, task: Task, splits: Splits, sequence: int, content: str, terminal: Terminal
) -> dict[str, Store]:
    """Return the store of each split; rows that were encoded the same way before are not encoded again.

    Args:
        content: of the task's reader (`burnish.data.reader.content_of`).

    Raises:
        UserError: more rows than allowed turn out to be broken.
    """
    stores = {}
    for split, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if not rows:
            continue
        training = split == "train"
        settings = task.settings.model_dump(mode="json")
        key = fingerprint(splits.fingerprint, split, task.name, task.version, settings, task.facts, content, sequence)
        path = cache_dir() / "stores" / key
        if not path.exists():
            terminal.say(f"encoding the {split} rows")
        total = splits.counts.get(split) or sum(1 for _ in rows)
        with terminal.progress(f"encoding {split}", total):
            examples = _shown(task.encode(rows, sequence, training=training), terminal)
            store = stores[split] = Store.build(path, examples)
        splits.broken += store.broken
        if split in splits.counts:
            splits.counts[split] -= len(store.broken)
    judged: dict[str, list[Store]] = {}
    for split, store in stores.items():
        held_out = split == "validation" and "train" in stores and not config.data.validation
        judged.setdefault("data.train" if held_out else f"data.{split}", []).append(store)
    for setting, some in judged.items():
        broken = [row for store in some for row in store.broken]
        refuse_broken(setting, broken, sum(map(len, some)), config.data.on_bad_row)
    return stores


def _shown(found: Iterable[Any], terminal: Terminal) -> Iterator[Any]:
    for number, one in enumerate(found, 1):
        yield one
        if number % 64 == 0:
            terminal.advance(number)


def documents(rows: Iterable[Row]) -> Iterable[str]:
    """Return the texts of rows for training a tokenizer, in pieces of bounded length."""
    for row in rows:
        for name in sorted(TEXTS & row.values.keys()):
            yield from re.findall(r"(?s).{1,100000}", row.values[name])
        if "messages" in row.values:
            yield from (message["content"] for message in conversation(row.values["messages"], row.where))
        if "chosen" in row.values:
            yield from texts_of(row)
        if "tokens" in row.values:
            yield " ".join(map(str, row.values["tokens"]))


def recount(splits: Splits, stores: dict[str, Store]) -> dict[str, Any]:
    """Return the sizes of the data as RUN/plan.json holds them."""
    return {
        "fingerprint": splits.fingerprint,
        "rows": splits.counts,
        "broken_rows": len(splits.broken),
        "examples": {split: len(store) for split, store in stores.items()},
        "tokens": {split: int(store.lengths().sum()) for split, store in stores.items()},
    }
