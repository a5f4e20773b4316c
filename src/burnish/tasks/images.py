"""What every task about images shares: decoding, shaping, varying and stacking them, and showing them in the report."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.config import AugmentSettings
from burnish.data.augment import blended, blends, is_on, varied
from burnish.data.pictures import Decode, Decoders, Picture, picture_of
from burnish.data.processor import scale_of, shaped
from burnish.errors import UserError
from burnish.task import BrokenRow, Example, Row, Task

if TYPE_CHECKING:
    import torch

#: Pixels of the longer side of a picture in the report.
_SHOWN_PIXELS = 160


class ImageTask(Task):
    """A task whose rows are images, each decoded and brought to the model's size once, and kept as bytes."""

    reads = "images"
    asks = ("image",)

    def check(self, model: Any) -> None:
        if is_on(self.augment) and find_spec("kornia") is None:
            raise UserError('augment: images are varied by the package kornia: pip install "burnish[vision]".')

    @property
    def processor(self) -> Any:
        """The model's image processor."""
        return self.tokenizer

    # -- rows to examples --------------------------------------------------------------------------------------------

    def encode(
        self, rows: Iterable[Row], sequence: int, *, training: bool
    ) -> Iterator[tuple[Example, str] | BrokenRow]:
        def encoded(row: Row, decode: Decode) -> list[tuple[Example, str] | BrokenRow]:
            found = self.examples(row, decode)
            if isinstance(found, str):
                return [BrokenRow(row.where, found)]
            return [({**example, "positions": np.array([sequence])}, row.where) for example in found]

        with Decoders() as decoders:
            for found in decoders.each(rows, encoded):
                yield from found

    def examples(self, row: Row, decode: Decode) -> Sequence[Example] | str:
        """Return the examples of a row, of which most tasks make one, or why there is none."""
        found = self.example(row, decode)
        return found if isinstance(found, str) else [found]

    @abstractmethod
    def example(self, row: Row, decode: Decode) -> Example | str:
        """Return a row as an example, its image by `seen`, or why it cannot be one. Called by several threads at once."""

    def seen(self, picture: Picture, decode: Decode) -> Example | str:
        """Return an image as its processor shapes it, `pixels` and `shape`, or why there is none."""
        pixels = decode(picture, "color")
        if isinstance(pixels, str):
            return f"{picture.name} {pixels}"
        return self.as_shown(pixels)

    def as_shown(self, pixels: np.ndarray) -> Example:
        """Return decoded pixels as the processor shapes them: `pixels` and `shape`."""
        pixels = shaped(self.processor, np.ascontiguousarray(pixels))
        return {"pixels": pixels.reshape(-1), "shape": np.array(pixels.shape[:2])}

    # -- examples to batches -----------------------------------------------------------------------------------------

    @property
    def varies(self) -> bool:
        return is_on(self.augment)

    @property
    def takes_next(self) -> bool:
        return blends(self.augment)

    def vary(self, example: Example, draw: int, following: Example | None = None) -> Example:
        example = {**example, "draw": np.array([draw], np.uint64)}
        if following is None or not self.takes_next:
            return example
        pixels, share = blended(self.augment, pixels_of(example), pixels_of(following), draw)
        return {
            **example,
            "pixels": pixels.reshape(-1),
            "other": following["label"],
            "share": np.array([share], np.float32),
        }

    def replayed(self, example: Example) -> Example:
        return {name: value for name, value in example.items() if name != "pixels"}

    def images(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the images of examples of one size as the model sees them: float32 [examples, 3, height, width].

        Of examples without pixels, a stand-in of that shape.
        """
        import torch

        if "pixels" not in examples[0]:
            return torch.zeros(1).expand(len(examples), 3, *map(int, examples[0]["shape"]))
        found = torch.from_numpy(np.stack([pixels_of(example) for example in examples]))
        found = found.permute(0, 3, 1, 2).float()
        factor, offset = (torch.from_numpy(value)[:, None, None] for value in scale_of(self.processor))
        if "draw" in examples[0]:
            draws = [int(example["draw"][0]) for example in examples]
            found = 255 * varied(self.augment, found / 255, draws)
        return found * factor + offset

    # -- predictions -------------------------------------------------------------------------------------------------

    def asked_pictures(self, asked: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Picture, np.ndarray]]:
        """Yield each image that is asked about, and its pixels as they are: uint8 [height, width, 3].

        Raises:
            UserError: one cannot be decoded.
        """
        with Decoders(1) as decoders:
            for number, given in enumerate(asked, 1):
                picture = picture_of(given["image"], f"image {number}", Path())
                pixels = decoders.decode(picture) if isinstance(picture, Picture) else picture
                if isinstance(picture, str) or isinstance(pixels, str):
                    raise UserError(f"{given['image'] if isinstance(picture, str) else picture.name}: {pixels}.")
                yield picture, pixels

    # -- the report --------------------------------------------------------------------------------------------------

    def previews(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        factor, offset = (value[:, None, None] for value in scale_of(self.processor))
        pictures = []
        for example in examples:
            values = (self.images([example])[0].numpy() - offset) / factor
            pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)
            pictures.append({"image": data_of(self.shown(pixels, example)), "caption": self.caption(example)})
        return [{"kind": "pictures", "title": "What training sees", "pictures": pictures}]

    def shown(self, pixels: np.ndarray, example: Example) -> np.ndarray:
        """Return an example's image, pixels as training sees them, with what of its target can be drawn on it."""
        return pixels

    @abstractmethod
    def caption(self, example: Example) -> str:
        """Return what an example's target says, in words."""


def refuse_blends(augment: AugmentSettings, targets: str) -> None:
    """Refuse to blend images whose targets cannot be.

    Raises:
        UserError: it is asked for.
    """
    for name in ("mixup", "cutmix"):
        if getattr(augment, name):
            raise UserError(
                f"augment.{name}: {targets} cannot be blended. Leave it out; flip, crop, shift, rotate and color suit."
            )


def pixels_of(example: Example) -> np.ndarray:
    """Return the pixels of an example: uint8 [height, width, 3]."""
    height, width = example["shape"]
    return example["pixels"].reshape(int(height), int(width), 3)


def fitting(height: int, width: int) -> tuple[int, int]:
    """Return the size in which an image is shown in the report."""
    scale = min(1.0, _SHOWN_PIXELS / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def data_of(pixels: np.ndarray) -> str:
    """Return pixels, uint8 [height, width, 3], as the address of a small picture that holds them itself."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    file = BytesIO()
    image.save(file, "PNG" if max(image.size) <= 64 else "JPEG")
    kind = "png" if max(image.size) <= 64 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
