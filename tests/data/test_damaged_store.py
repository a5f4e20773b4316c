"""Encoded rows on disk: damage is found and mended, a place that cannot be written is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from burnish.data.store import Damaged, Store
from burnish.errors import UserError
from burnish.run import write_json

EXAMPLES = [({"input_ids": np.arange(3 + n), "label": np.array([n])}, f"a.csv:{n}") for n in range(5)]


def build(path: Path) -> Store:
    return Store.build(path, iter(EXAMPLES))


def test_a_row_may_come_from_a_file_of_any_name(tmp_path: Path) -> None:
    places = [os.fsdecode(b"bad\xff.wav"), "two\nlines.wav", "a\rb", "\\n", "c:\\new\\", "plain.csv:4", "\ud800"]
    store = Store.build(tmp_path / "store", [({"input_ids": np.arange(3)}, place) for place in places])
    assert [store.where(row) for row in range(len(places))] == places
    write_json(tmp_path / "places.json", places)
    assert json.loads((tmp_path / "places.json").read_text()) == places


def is_whole(store: Store) -> bool:
    return all(
        np.array_equal(store[n][name], example[name]) for n, (example, _) in enumerate(EXAMPLES) for name in example
    )


@pytest.mark.parametrize(
    "name", ["label.values.npy", "input_ids.values.npy", "input_ids.offsets.npy", "where.txt", "store.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_store_is_written_again(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "store"
    assert is_whole(build(path))
    file = path / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes({"flip": flipped, "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(Damaged):
        Store(path)
    assert is_whole(build(path)) and is_whole(Store(path))


@pytest.mark.parametrize("missing", ["features", "broken", "size"])
def test_a_store_of_another_version_is_written_again(tmp_path: Path, missing: str) -> None:
    build(tmp_path / "store")
    meta = json.loads((tmp_path / "store" / "store.json").read_text())
    del meta[missing]
    (tmp_path / "store" / "store.json").write_text(json.dumps(meta))
    assert is_whole(build(tmp_path / "store"))


def test_rows_that_cannot_be_read_are_not_blamed_on_the_place(tmp_path: Path) -> None:
    def torn() -> Iterator[tuple[dict, str]]:
        yield EXAMPLES[0]
        raise OSError(5, "Input/output error", "rows.csv")

    with pytest.raises(OSError, match=r"rows\.csv"):
        Store.build(tmp_path / "store", torn())
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/stores: encoded rows cannot be kept there .* Set BURNISH_CACHE to a folder"
    ):
        build(tmp_path / "file" / "stores" / "key")
