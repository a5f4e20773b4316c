"""Images varied in training: moved, coloured, erased, blended. All of it follows from 64 bits a row (`Task.vary`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from burnish.config import PICTURES, AugmentSettings

if TYPE_CHECKING:
    import torch

#: Share of an image's area that is erased, and the ratio of a rectangle's sides (Zhong et al. 2020, section 4.1).
_ERASED, _RATIO = (0.02, 0.2), (0.3, 1 / 0.3)
#: Grey, in values from 0 to 1.
_GREY = 0.5


def is_on(settings: AugmentSettings) -> bool:
    """Return whether anything is varied of images."""
    return settings.model_dump(include=set(PICTURES)) != AugmentSettings().model_dump(include=set(PICTURES))


def blends(settings: AugmentSettings) -> bool:
    """Return whether two images become one."""
    return settings.mixup > 0 or settings.cutmix > 0


def chances(draw: int, what: str) -> np.random.Generator:
    """Return a source of random numbers that follows from a row's bits, another for each thing that is varied."""
    return np.random.Generator(np.random.PCG64([draw % 2**32, draw // 2**32, *what.encode()]))


def blended(settings: AugmentSettings, first: np.ndarray, second: np.ndarray, draw: int) -> tuple[np.ndarray, float]:
    """Return two images as one, and the share of the first.

    Args:
        first: uint8 [height, width, 3], as `second`.

    Source: Zhang et al. 2018 (MixUp), section 2; Yun et al. 2019 (CutMix), section 3.1.
    """
    random = chances(draw, "blend")
    cuts = settings.cutmix > 0 and (settings.mixup == 0 or random.random() < 0.5)
    strength = settings.cutmix if cuts else settings.mixup
    share = random.beta(strength, strength)
    if not cuts:
        mixed = share * first.astype(np.float32) + (1 - share) * second.astype(np.float32)
        return np.rint(mixed).astype(np.uint8), float(share)
    height, width = first.shape[:2]
    tall, wide = (round(side * math.sqrt(1 - share)) for side in (height, width))
    top, left = int(random.integers(0, height - tall + 1)), int(random.integers(0, width - wide + 1))
    pasted = first.copy()
    pasted[top : top + tall, left : left + wide] = second[top : top + tall, left : left + wide]
    return pasted, 1 - tall * wide / (height * width)


def motion(settings: AugmentSettings, draw: int, height: int, width: int) -> np.ndarray:
    """Return how the pixels of an image move: float64 [3, 3], from where each was to where it goes, as (x, y, 1).

    The centre of the pixel at the left top is (0, 0). Boxes and masks move by the same matrix.
    """
    random = chances(draw, "move")
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    sides = [-1.0 if random.random() < 0.5 else 1.0 for _ in range(2)]
    flip_x = sides[0] if settings.flip != "none" else 1.0
    flip_y = sides[1] if settings.flip == "both" else 1.0
    zoom = random.uniform(settings.crop, 1.0) ** -0.5
    angle = math.radians(settings.rotate) * random.uniform(-1, 1)
    # Enlarged, the image has room to move in beside what `shift` allows.
    room_x, room_y = ((zoom - 1) / 2 + settings.shift) * width, ((zoom - 1) / 2 + settings.shift) * height
    move_x, move_y = room_x * random.uniform(-1, 1), room_y * random.uniform(-1, 1)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = np.array([[cos * flip_x, -sin * flip_y, 0], [sin * flip_x, cos * flip_y, 0], [0, 0, 1]])
    there = np.array([[1, 0, middle_x + move_x], [0, 1, middle_y + move_y], [0, 0, 1]])
    back = np.array([[1, 0, -middle_x], [0, 1, -middle_y], [0, 0, 1]])
    return there @ turn @ back


def moves(settings: AugmentSettings) -> bool:
    """Return whether pixels move."""
    return (settings.flip, settings.crop, settings.shift, settings.rotate) != ("none", 1.0, 0.0, 0.0)


def moved(images: torch.Tensor, matrices: Sequence[np.ndarray], *, nearest: bool = False) -> torch.Tensor:
    """Return images [images, channels, height, width] with their pixels moved; beyond an edge it goes on as it is.

    Args:
        matrices: `motion` of each.
        nearest: take the nearest pixel, as suits a mask, and 0 beyond an edge.
    """
    import torch
    from kornia.geometry.transform import warp_affine

    where = torch.from_numpy(np.stack(matrices)[:, :2].astype(np.float32))
    mode, beyond = ("nearest", "zeros") if nearest else ("bilinear", "border")
    return warp_affine(images, where, (images.shape[2], images.shape[3]), mode=mode, padding_mode=beyond)


def varied(settings: AugmentSettings, images: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
    """Return images as training sees them.

    Args:
        images: float32 [images, 3, height, width], values 0 to 1.
        draws: 64 bits of each.
    """
    height, width = images.shape[2:]
    if moves(settings):
        images = moved(images, [motion(settings, draw, height, width) for draw in draws])
    if settings.color:
        images = _coloured(settings.color, images, draws)
    if settings.erase:
        images = images.clone()
        for image, draw in zip(images, draws, strict=True):
            _erase(image, settings.erase, chances(draw, "erase"))
    return images


def _coloured(most: float, images: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
    import torch
    from kornia import enhance

    factors = np.stack([chances(draw, "color").uniform(1 - most, 1 + most, 3) for draw in draws]).astype(np.float32)
    light, contrast, saturation = torch.from_numpy(factors).unbind(1)
    images = (images * light[:, None, None, None]).clamp(0, 1)
    images = enhance.adjust_contrast_with_mean_subtraction(images, contrast).clamp(0, 1)
    return enhance.adjust_saturation_with_gray_subtraction(images, saturation).clamp(0, 1)


def _erase(image: torch.Tensor, often: float, random: np.random.Generator) -> None:
    """Make a rectangle of an image [3, height, width] grey, so often. Source: Zhong et al. 2020, algorithm 1."""
    if random.random() >= often:
        return
    height, width = image.shape[1:]
    area = random.uniform(*_ERASED) * height * width
    ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
    tall = min(height, max(1, round(math.sqrt(area * ratio))))
    wide = min(width, max(1, round(math.sqrt(area / ratio))))
    top, left = int(random.integers(0, height - tall + 1)), int(random.integers(0, width - wide + 1))
    image[:, top : top + tall, left : left + wide] = _GREY
