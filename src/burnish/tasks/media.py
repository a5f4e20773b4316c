"""What every task about images or sounds shares: decoding them, and what is asked of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.media import Decode, Decoders
from burnish.data.rows import MEDIA
from burnish.errors import UserError
from burnish.task import BrokenRow, Example, Row, Task


class MediaTask(Task):
    """A task whose rows are images or sounds, each decoded once."""

    def decoders(self, count: int | None = None) -> Decoders:
        """Return what decodes its rows."""
        return Decoders(count)

    def encode(
        self, rows: Iterable[Row], sequence: int, *, training: bool
    ) -> Iterator[tuple[Example, str] | BrokenRow]:
        def encoded(row: Row, decode: Decode) -> list[tuple[Example, str] | BrokenRow]:
            found = self.examples(row, decode)
            if isinstance(found, str):
                return [BrokenRow(row.where, found)]
            return [({"positions": np.array([sequence]), **example}, row.where) for example in found]

        with self.decoders() as decoders:
            for found in decoders.each(rows, encoded):
                yield from found

    def examples(self, row: Row, decode: Decode) -> Sequence[Example] | str:
        """Return the examples of a row, of which most tasks make one, or why there is none."""
        found = self.example(row, decode)
        return found if isinstance(found, str) else [found]

    @abstractmethod
    def example(self, row: Row, decode: Decode) -> Example | str:
        """Return a row as an example, or why it cannot be one. Called by several threads at once."""

    def asked_media(
        self, asked: Sequence[Mapping[str, Any]], decoders: Decoders, kind: str
    ) -> Iterator[tuple[Any, Any]]:
        """Yield each image or sound that is asked about, and what it decodes to.

        Raises:
            UserError: one cannot be decoded.
        """
        [column] = self.asks
        for number, given in enumerate(asked, 1):
            medium = MEDIA[column](given[column], f"{column} {number}", Path())
            found = medium if isinstance(medium, str) else decoders.decode(medium, kind)
            if isinstance(medium, str) or isinstance(found, str):
                raise UserError(f"{given[column] if isinstance(medium, str) else medium.name}: {found}.")
            yield medium, found
