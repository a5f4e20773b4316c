"""What every task about images shares: decoding, shaping, varying and stacking them, and showing them in the report."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.config import AugmentSettings
from burnish.data.augment import blended, blends, is_on, varied
from burnish.data.media import Decode
from burnish.data.pictures import Picture
from burnish.data.processor import scale_of, shaped
from burnish.errors import UserError
from burnish.models.vision import Sight, see, size_of
from burnish.task import Example
from burnish.tasks.media import MediaTask

if TYPE_CHECKING:
    import torch

#: Pixels of the longer side of a picture in the report.
_SHOWN_PIXELS = 160


class ImageTask(MediaTask):
    """A task whose rows are images, each decoded and brought to the model's size once, and kept as bytes."""

    reads = "images"
    asks = ("image",)
    decodes = "color"
    """As what `Decoder.decode` gives an image; "reduced" where no place in it counts."""

    def check(self, model: Any) -> None:
        if is_on(self.augment) and find_spec("kornia") is None:
            raise UserError('augment: images are varied by the package kornia: pip install "burnish[vision]".')

    @property
    def processor(self) -> Any:
        """The model's image processor."""
        return self.tokenizer

    def sight(self, model: Any) -> Sight:
        return see(model, *size_of(self.processor))

    # -- rows to examples --------------------------------------------------------------------------------------------

    def seen(self, picture: Picture, decode: Decode) -> Example | str:
        """Return an image as its processor shapes it, `pixels` and `shape`, or why there is none."""
        pixels = decode(picture, self.decodes)
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
        with self.decoders(1) as decoders:
            yield from self.asked_media(asked, decoders, self.decodes)

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
