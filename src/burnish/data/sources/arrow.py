"""Parquet files, and the Arrow files in which `datasets` keeps Hub data sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.data.rows import Source
from burnish.errors import UserError
from burnish.task import BrokenRow, Row


class _TableSource(Source):
    """Record batches of a columnar file; a class-label column of `datasets` gives its names instead of its numbers."""

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        import pyarrow as pa

        number = 0
        try:
            for batch in self._batches(path):
                names = _class_names(batch.schema)
                for values in batch.to_pylist():
                    number += 1
                    yield Row(_named(values, names), f"{path}:{number}")
        except (pa.ArrowException, OSError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot be read as {self.name} after row {number} ({problem}).") from error

    @abstractmethod
    def _batches(self, path: Path) -> Iterator[Any]:
        """Yield the file's record batches."""


class ParquetSource(_TableSource):
    """Parquet files."""

    name = "parquet"
    endings = (".parquet",)

    def _batches(self, path: Path) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)


class ArrowSource(_TableSource):
    """Arrow streams, the form in which `datasets` caches a Hub data set."""

    name = "arrow"
    endings = (".arrow",)

    def _batches(self, path: Path) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(path)) as handle, pa.ipc.open_stream(handle) as stream:
            yield from stream


def _class_names(schema: Any) -> dict[str, list[str]]:
    from datasets import ClassLabel, Features

    try:
        features = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # metadata written by another tool
        return {}
    return {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}


def _named(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    for column, labels in names.items():
        label = values.get(column)
        if isinstance(label, int) and 0 <= label < len(labels):
            values[column] = labels[label]
    return values
