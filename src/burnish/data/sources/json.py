"""JSON: a list of objects, questions and answers as SQuAD nests them, or images and their objects as COCO has them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.data.annotations import coco_rows, is_coco
from burnish.data.rows import Source
from burnish.errors import UserError
from burnish.task import BrokenRow, Row


class JsonSource(Source):
    """A list of objects, alone or under `data`; one with `paragraphs` gives a row for each of its questions.

    Sources: the layout of Rajpurkar et al. 2016 and 2018 (SQuAD 1.1 and 2.0); of COCO see `burnish.data.annotations`.
    """

    name = "json"
    endings = (".json",)

    def read(self, path: Path) -> Iterator[Row | BrokenRow]:
        found = _load(path)
        if is_coco(found):
            yield from coco_rows(found, path)
            return
        rows = found.get("data") if isinstance(found, dict) else found
        if not isinstance(rows, list):
            raise UserError(f"{path}: holds neither a list of objects nor one under 'data'.")
        for number, value in enumerate(rows, 1):
            where = f"{path}:{number}"
            if not isinstance(value, dict):
                yield BrokenRow(where, f"is a JSON {type(value).__name__}, not an object with columns")
            elif "paragraphs" in value:
                yield from _questions(value, path, where)
            else:
                yield Row(value, where)


def _load(path: Path) -> Any:
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as handle:
            return json.loads(handle.read().decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start + 1}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not valid JSON ({str(error)[:100]}). A file with an object on each line ends in .jsonl."
        ) from error


def _questions(article: dict[str, Any], path: Path, where: str) -> Iterator[Row | BrokenRow]:
    """Yield the questions of an article, each with its paragraph."""
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                row = {"context": paragraph["context"], **question, "title": article.get("title", "")}
                if question.get("is_impossible"):
                    row["answers"] = []  # what stands there is plausible, not right
                yield Row(row, f"{path}:{question['id']}" if "id" in question else where)
    except (KeyError, TypeError, AttributeError) as error:
        yield BrokenRow(where, f"is not laid out as SQuAD: paragraphs, each with context and qas ({error!r})")
