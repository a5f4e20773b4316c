"""Images as a plain script gives them to Trainer: decoded and processed each time they are asked for, or once for all."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.boxes import shares
from burnish.session import Session


class Images:
    """The training rows of a session as a data set of Trainer's.

    Args:
        session: prepared.
        kept: process every image once, before training, and keep it in memory.
    """

    def __init__(self, session: Session, kept: bool):
        self.processor, self.store = session.task.tokenizer, session.stores["train"]
        by_place = {row.where: row.values["image"] for row in session.splits.train}
        self.files = [_file_of(by_place[place]) for place in _places(session)]
        self.kept = [self._made(number) for number in range(len(self.files))] if kept else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.kept[number] if self.kept else self._made(number)

    def _made(self, number: int) -> dict[str, Any]:
        from PIL import Image

        image = Image.open(self.files[number] if isinstance(self.files[number], Path) else BytesIO(self.files[number]))
        pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": _labels_of(self.store[number])}


def _labels_of(example: Any) -> Any:
    """Return the target of an encoded example as transformers' models take it."""
    import torch

    if "boxes" in example:
        boxes = shares(example["boxes"].reshape(-1, 4), *example["shape"]).astype(np.float32)
        return {"boxes": torch.from_numpy(boxes), "class_labels": torch.from_numpy(example["numbers"].astype(np.int64))}
    if "truth" in example:
        return example["truth"].reshape(*example["size"]).astype(np.int64)
    return int(example["label"][0])


def together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rows as one batch; the boxes of each image stay a table of their own."""
    import torch

    labels: Any = [row["labels"] for row in rows]
    if not isinstance(labels[0], dict):
        labels = torch.from_numpy(np.stack(labels))
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


def _places(session: Session) -> list[str]:
    return (session.stores["train"].path / "where.txt").read_text(encoding="utf-8").splitlines()


def _file_of(picture: Any) -> Path | bytes:
    """Return a picture's file, or the bytes of one; pixels that never were one are packed as data sets keep them."""
    from PIL import Image

    if not isinstance(picture.content, np.ndarray):
        return picture.content
    file = BytesIO()
    Image.fromarray(picture.content).save(file, "PNG")
    return file.getvalue()
