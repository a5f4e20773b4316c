"""Image processors: the model's own, or one that brings images to a size; always transformers' PIL ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import UserError

_SIDES = ("height", "width")
FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(folder: Path, size: int | None = None) -> Any:
    """Return the image processor stored in a folder.

    Args:
        size: height and width to which it shall bring images; None: its own.

    Raises:
        UserError: the folder holds none, or one that needs remote code.
    """
    from transformers import AutoImageProcessor

    if not any((folder / name).is_file() for name in FILES):
        raise UserError(
            f"{folder}: holds no image processor ({FILES[0]}), so it is not known what its model was shown."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil", trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: holds no image processor that can be read ({problem}).") from error
    if size is not None:
        resize(processor, size)
    return processor


def make_processor(size: int, like: Path | None = None) -> Any:
    """Return a processor for a model from scratch: images become squares of `size` pixels a side, values -1 to 1.

    Args:
        like: folder of a pretrained backbone, whose mean and spread are taken in place of those.

    Raises:
        UserError: the folder holds no processor.
    """
    from transformers import ViTImageProcessorPil

    mean = std = [0.5] * 3
    if like is not None:
        known = load_processor(like)
        mean, std = known.image_mean, known.image_std
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=std)


def resize(processor: Any, size: int) -> None:
    """Let a processor bring images to another size, by the rule that it has: directly, or cut from the middle."""
    square, rule = {"height": size, "width": size}, dict(processor.size)
    if getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None):
        before = processor.crop_size["height"]
        processor.crop_size = square
        if "shortest_edge" in rule:
            processor.size = {"shortest_edge": round(rule["shortest_edge"] * size / before)}
        else:
            processor.size = square
    else:
        processor.size = {"shortest_edge": size} if rule.keys() == {"shortest_edge"} else square


def shaped(processor: Any, pixels: np.ndarray) -> np.ndarray:
    """Return an image as the processor shapes it, its values as they are: uint8 [height, width, 3].

    Args:
        pixels: uint8 [height, width, 3].
    """
    cuts = getattr(processor, "do_center_crop", False)
    if not cuts and dict(processor.size) == dict(zip(_SIDES, pixels.shape[:2], strict=True)):
        return pixels
    given: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
    if getattr(processor, "do_pad", None):
        given["do_pad"] = False
    found = processor(pixels, **given, return_tensors="np")["pixel_values"][0]
    return np.ascontiguousarray(np.asarray(found, np.uint8).transpose(1, 2, 0))


def scale_of(processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return by what each channel's values, 0 to 255, are multiplied and what is added then: float32 [3] both."""
    factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    mean, std = np.zeros(3), np.ones(3)
    if getattr(processor, "do_normalize", False):
        mean, std = np.broadcast_to(processor.image_mean, 3), np.broadcast_to(processor.image_std, 3)
    return (factor / std).astype(np.float32), (-mean / std).astype(np.float32)


def content_of(processor: Any) -> str:
    """Return a text that is the same for processors that shape images alike."""
    values = processor.to_dict()
    return repr(sorted((name, value) for name, value in values.items() if "mean" not in name and "std" not in name))
