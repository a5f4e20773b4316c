"""Models that see images or hear sounds: what one costs them, and tables of positions for another size of image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from math import ceil
from typing import Any

from burnish.errors import UserError
from burnish.models.stack import find_stack


@dataclass(frozen=True)
class Sight:
    """What a model makes of one image or sound."""

    positions: int
    """That its layers see: patches and what stands beside them; 1 where they see a map and not a sequence."""
    flops: float
    """Floating-point operations of a forward pass."""
    numbers: int
    """That its modules return, together: about what a backward pass needs."""
    of: str
    """What it is shown, in words."""


def see(model: Any, height: int, width: int) -> Sight:
    """Return what a model makes of an image of this size, found by a pass over shapes.

    Args:
        model: on the meta device.

    Raises:
        UserError: it takes no image of this size.
    """
    import torch

    _refuse_few_places(model.config, height, width)
    inputs, size = {"pixel_values": torch.zeros(1, 3, height, width)}, f"{height} x {width}"
    refusal = f"model.image_size: {type(model).__name__} takes no image of {size}"
    return _sight(model, inputs, f"images of {size} pixels", refusal)


def hear(model: Any, inputs: Mapping[str, Any], seconds: int) -> Sight:
    """Return what a model makes of a sound of some seconds, found by a pass over shapes.

    Args:
        model: on the meta device.
        inputs: what it gets of such a sound.

    Raises:
        UserError: it takes none of this form.
    """
    refusal = f"model: {type(model).__name__} takes no sound of {seconds} seconds"
    return _sight(model, inputs, f"sounds of at most {seconds} seconds", refusal)


def _sight(model: Any, inputs: Mapping[str, Any], of: str, refusal: str) -> Sight:
    try:
        return _seen(model, inputs, of, refusal)
    except UserError as error:
        if " meta" not in str(error):
            raise
        return _seen(_empty(model), inputs, of, refusal)  # one that looks at numbers on its way


def _empty(model: Any) -> Any:
    """Return a model of zeros like one on the meta device."""
    import torch

    made = deepcopy(model).to_empty(device="cpu").requires_grad_(False).eval()
    with torch.no_grad():
        for value in [*made.parameters(), *made.buffers()]:
            value.zero_()
    return made


def _seen(model: Any, inputs: Mapping[str, Any], of: str, refusal: str) -> Sight:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    positions, numbers, handles = [1], [0], []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, torch.Tensor) and hidden.ndim == 3:
            positions[0] = hidden.shape[1]

    def count(module: Any, args: Any, output: Any) -> None:
        numbers[0] += output.numel() if isinstance(output, torch.Tensor) else 0

    with suppress(UserError):  # no layers, no positions
        handles.append(find_stack(model)[1][0].register_forward_pre_hook(note, with_kwargs=True))
    handles += [one.register_forward_hook(count) for one in model.modules() if not list(one.children())]
    learned = [value for value in model.parameters() if value.requires_grad]
    try:
        for value in learned:  # else what counts operations looks for the gradient of a weight that a layer is given
            value.requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**{name: value.to(model.device) for name, value in inputs.items()})
    except (ValueError, RuntimeError, IndexError) as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"{refusal} ({problem}).") from error
    finally:
        for value in learned:
            value.requires_grad_(True)
        for handle in handles:
            handle.remove()
    return Sight(positions[0], float(counter.get_total_flops()), numbers[0], of)


def _refuse_few_places(config: Any, height: int, width: int) -> None:
    """Refuse images with fewer places in a detector's maps than queries, each of which begins at one, as in RT-DETR.

    Raises:
        UserError: names the side that is enough.
    """
    strides, queries = getattr(config, "feat_strides", None), getattr(config, "num_queries", 0)
    places = lambda high, wide: sum(ceil(high / stride) * ceil(wide / stride) for stride in strides or ())  # noqa: E731
    if not strides or places(height, width) >= queries:
        return
    enough = next(side for side in count(max(strides), max(strides)) if places(side, side) >= queries)
    raise UserError(
        f"model.image_size: at {height} x {width} pixels a {config.model_type} has {places(height, width)} places in its maps, "
        f"fewer than its {queries} queries, each of which begins at one. Give --model.image-size {enough} or more."
    )


def settle(model: Any, images: Any, apart: Any = None) -> None:
    """Set the statistics of a new model's batch norms to those of some images.

    From then on they stay: a norm over the rows of a micro-batch would tie a row's result to the others. Without any,
    what goes through dozens of fresh convolutions would vanish or overflow.

    Args:
        images: as the model gets them.
        apart: a part of the model whose norms stay as they are, such as a pretrained backbone.
    """
    import torch

    def measure(module: Any, args: Any) -> None:
        values = args[0].transpose(0, 1).flatten(1).float()
        module.running_mean.copy_(values.mean(1))
        module.running_var.copy_(values.var(1, correction=0))

    kept = {id(module) for module in apart.modules()} if apart is not None else set()
    norms = [module for module in model.modules() if hasattr(module, "running_mean") and id(module) not in kept]
    training, handles = model.training, [module.register_forward_pre_hook(measure) for module in norms]
    model.eval()
    try:
        with torch.no_grad():
            model(pixel_values=images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)


def size_of(processor: Any) -> tuple[int, int]:
    """Return height and width of the images that a processor makes; where it keeps their shape, of the widest."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if "height" in size:
        return size["height"], size["width"]
    return size["shortest_edge"], size.get("longest_edge") or size["shortest_edge"]


def sized(config: Any, size: tuple[int, int], skeleton: Callable[[Any], Any]) -> Any:
    """Return a model's config for images of `size`, height and width; unchanged where the model takes them as it is.

    Args:
        skeleton: makes the model of a config on the meta device.

    Raises:
        UserError: it takes none of this size.
    """
    try:
        see(skeleton(config), *size)
    except UserError:
        before = getattr(config, "image_size", None)
        if before is None:
            raise
        config.image_size = list(size) if isinstance(before, list | tuple) else size[0]
        see(skeleton(config), *size)
    return config


def stretch_positions(tables: dict[str, Any], model: Any) -> list[str]:
    """Fill a model's tables of positions from those for another size of image; return the names of those that were.

    What stands for no patch, such as the class token's position, is first in a table and stays as it is; the others are
    interpolated as a picture.

    Args:
        tables: the weights of the other model, by name.

    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    import torch
    from torch.nn import functional

    done = []
    if not hasattr(model.config, "image_size") or not hasattr(model.config, "patch_size"):
        return done  # a model of text, whose positions are no picture
    for name, value in model.named_parameters():
        before = tables.get(name)
        if "position_embedding" not in name or before is None or before.shape == value.shape:
            continue
        height, width = _grid(model.config)
        special = value.shape[-2] - height * width
        side = round((before.shape[-2] - special) ** 0.5)
        if special < 0 or side * side != before.shape[-2] - special:
            continue
        patches = before[..., special:, :].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        wider = functional.interpolate(patches, (height, width), mode="bicubic", align_corners=False)
        wider = wider.permute(0, 2, 3, 1).reshape(*value.shape[:-2], height * width, -1)
        with torch.no_grad():
            value.copy_(torch.cat([before[..., :special, :].float(), wider], -2))
        done.append(name)
    return done


def _grid(config: Any) -> tuple[int, int]:
    """Return how many patches an image has, down and across."""
    size, patch = (
        (value, value) if isinstance(value, int) else tuple(value) for value in (config.image_size, config.patch_size)
    )
    return size[0] // patch[0], size[1] // patch[1]
