"""Image segmentation: what each pixel of an image shows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings, Texts
from burnish.data.augment import motion, moved, moves
from burnish.data.masks import BACKGROUND, VOID, Segments, Shapes, numbered, painted, runs, shrunk, tinted, unpacked
from burnish.data.media import Decode, Decoders
from burnish.data.processor import resize
from burnish.errors import UserError
from burnish.task import Batch, Example, Records, Row, Task, label_options
from burnish.tasks.images import ImageTask, data_of, fitting, pixels_of, refuse_blends
from burnish.tasks.mask_loss import KINDS, MaskLoss, Target
from burnish.tasks.object_segmentation import ObjectSegmentation

if TYPE_CHECKING:
    import torch

#: Pictures of the worst errors in the report.
_MOST_SHOWN = 24
#: Targets that are neither learned nor counted, as torch numbers them.
_IGNORED = -100


class ImageSegmentationSettings(TaskSettings):
    """Say what each pixel shows."""

    kind: Literal["semantic", "instance", "panoptic"] | None = None
    """The class of each pixel, single objects with a mask each, or objects and stuff such that each pixel belongs to one.
    Default: semantic; of a model that finds a set of masks (Mask2Former, MaskFormer) and does all three, instance."""
    labels: Texts = ()
    """Names of the masks' numbers, from 0. Default: the numbers that occur are classes, named by themselves; where they number
    objects, `background,object`."""
    void: int | None = Field(None, ge=0, le=65_535)
    """The number of pixels that are neither learned nor counted. Default: 255, and none where numbers are objects."""
    divisor: int | None = Field(None, ge=2, le=65_535)
    """Where masks number objects: a number is class x this + object, a smaller one is a class of stuff (Cityscapes has 1000).
    Default: each number but 0 is an object, all of one class."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Score from which an object is given as an answer, and a segment counts in panoptic segmentation. Average precision is
    measured over all of them."""


class ImageSegmentation(ImageTask):
    """A class for each pixel, learned by cross-entropy, a mean over the pixels of the global batch.

    The model's map is enlarged to its image for the loss, and to the mask as it is kept for all that is measured.
    """

    name = "image-segmentation"
    Settings = ImageSegmentationSettings
    auto_class = "AutoModelForSemanticSegmentation"
    metric_names = ("mean_iou", "mean_dice", "pixel_accuracy", "loss")

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        tokenizer.do_center_crop = False  # a mask is for the whole image
        size = dict(tokenizer.size)
        if "height" not in size:
            resize(tokenizer, size.get("shortest_edge") or max(size.values()))
        numbers = np.full(65_536, -1)
        numbers[facts.get("numbers", [])] = range(len(facts.get("numbers", [])))
        numbers[_void(self.settings)] = VOID
        self._number_of = numbers

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        if config.model_type in KINDS:
            return _by_masks(cls) if settings.kind == "semantic" else _of_objects(cls)
        for name in ("divisor", "kind"):
            if (value := getattr(settings, name)) not in (None, "semantic"):
                raise UserError(
                    f"task.{name}: {value} is for a model that finds a set of masks. Take a Mask2Former or MaskFormer "
                    "(--preset mask2former-nano), or leave it out."
                )
        return cls

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"image": data.image, "mask": data.mask}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: ImageSegmentationSettings) -> dict[str, Any]:
        """Return the names of the classes, and the number that each has in masks."""
        masks = [row.values["mask"] for row in rows]
        outlined = {name for mask in masks if isinstance(mask, Shapes) for name in mask.names}
        if outlined:
            labels = [BACKGROUND, *sorted(outlined - {BACKGROUND})]
            return _facts(labels, list(range(len(labels))))
        if listed := {name for mask in masks if isinstance(mask, Segments) for name in mask.names.values()}:
            return _facts(sorted(listed), list(range(len(listed))))
        if settings.labels:
            return _facts(list(settings.labels), list(range(len(settings.labels))))
        found: set[int] = set()
        problem = ""
        with Decoders() as decoders:
            for numbers in decoders.each(rows, _numbers_in):
                if isinstance(numbers, str):
                    problem = problem or numbers
                else:
                    found |= numbers
        if problem and not found:
            raise UserError(f"data.mask: no mask can be read: {problem}.")
        found -= {_void(settings)}
        if len(found) < 2:
            raise UserError(
                f"data.mask: the masks hold only the number {', '.join(map(str, found))}; there is nothing to tell."
            )
        return _facts([str(number) for number in sorted(found)], sorted(found))

    @property
    def names(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.facts["labels"]

    def model_options(self) -> dict[str, Any]:
        return label_options(self.names)

    def check(self, model: Any) -> None:
        super().check(model)
        refuse_blends(self.augment, "masks")

    # -- rows to batches ---------------------------------------------------------------------------------------------

    def example(self, row: Row, decode: Decode) -> Example | str:
        picture, mask = row.values["image"], row.values["mask"]
        pixels = decode(picture, "color")
        if isinstance(pixels, str):
            return f"{picture.name} {pixels}"
        height, width = pixels.shape[:2]
        if isinstance(mask, Shapes):
            unknown = next((name for name in mask.names if name not in self.names), None)
            if unknown is not None:
                return f"{unknown!r} does not occur in the training rows (there: {', '.join(self.names[:10])})"
            truth = painted(mask, self.names, height, width)
        elif isinstance(mask, Segments):
            truth = self._joined(mask, decode)
            mask = mask.picture
        else:
            truth = self._read(decode(mask, "mask"), mask.name)
        if isinstance(truth, str):
            return truth
        if truth.shape != (height, width):
            return (
                f"{picture.name} is {width} wide and {height} high, its mask {truth.shape[1]} and {truth.shape[0]} "
                "(if the image says that it is to be turned, turn it for good)"
            )
        return {
            **self.as_shown(pixels),
            "truth": truth.reshape(-1),
            "size": np.array(truth.shape),
        }

    def _read(self, numbers: np.ndarray | str, name: str) -> np.ndarray | str:
        """Return a stored mask with our numbers of its classes, or why it has none."""
        if isinstance(numbers, str):
            return f"{name} {numbers}"
        found = self._number_of[numbers]
        if (found < 0).any():
            row, column = np.argwhere(found < 0)[0].tolist()
            known = ", ".join(map(str, self.facts["numbers"][:10]))
            place = f"row {row}, column {column}"
            return f"{name} has the number {numbers[row, column]} at {place}, which is no class (they are {known})"
        return found.astype(np.uint8)

    def _joined(self, mask: Segments, decode: Decode) -> np.ndarray | str:
        """Return a mask of segments as one with our numbers of their classes, or why it has none."""
        pixels = decode(mask.picture, "color")
        if isinstance(pixels, str):
            return f"{mask.picture.name} {pixels}"
        truth = np.full(pixels.shape[:2], VOID, np.uint8)
        for segment in numbered(mask, pixels):
            if isinstance(segment, str):
                return segment
            if segment.name not in self.names:
                return f"{segment.name!r} does not occur in the training rows (there: {', '.join(self.names[:10])})"
            truth[segment.inside] = self.names.index(segment.name)
        return truth

    def _target(self, example: Example) -> np.ndarray:
        """Return the mask as training sees it: uint8 [height, width] of the model's image."""
        import torch

        height, width = example["shape"].tolist()
        mask = shrunk(_truth(example), height, width)
        if "draw" not in example or not moves(self.augment):
            return mask
        matrix = motion(self.augment, int(example["draw"][0]), height, width)
        above = torch.from_numpy(mask + 1.0)[None, None].float()  # beyond an edge comes 0, and so is void
        return (moved(above, [matrix], nearest=True)[0, 0].numpy() - 1).astype(np.int64).astype(np.uint8)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        labels = np.stack([self._target(example) for example in examples]).astype(np.int64)
        labels[labels == VOID] = _IGNORED
        targets = {
            "labels": torch.from_numpy(labels),
            "truth": torch.from_numpy(np.concatenate([example["truth"] for example in examples])),
            "size": torch.from_numpy(np.stack([example["size"] for example in examples]).astype(np.int64)),
        }
        lengths = [int(example["positions"][0]) for example in examples]
        weights = {"loss": float((labels != _IGNORED).sum())}
        return Batch({"pixel_values": self.images(examples)}, targets, weights, lengths)

    def _logits(self, model: Any, images: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=images.to(model.dtype)).logits.float()

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        labels = batch.targets["labels"]
        logits = enlarged(self._logits(model, batch.inputs["pixel_values"]), labels.shape[1], labels.shape[2])
        return {"loss": functional.cross_entropy(logits, labels, ignore_index=_IGNORED, reduction="sum")}

    # -- what is measured --------------------------------------------------------------------------------------------

    def score(self, model: Any, batch: Batch) -> Records:
        logits = self._logits(model, batch.inputs["pixel_values"])
        records: dict[str, list[Any]] = {name: [] for name in ("hits", "found", "there", "loss", "shown")}
        start = 0
        for own, (height, width) in zip(logits, batch.targets["size"].tolist(), strict=True):
            truth = batch.targets["truth"][start : start + height * width].reshape(height, width)
            start += height * width
            for name, value in self._compared(own, truth).items():
                records[name].append(value)
        shown = np.empty(len(logits), object)
        shown[:] = records.pop("shown")
        return {name: np.stack(values) for name, values in records.items()} | {"shown": shown}

    def _compared(self, logits: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
        """Return how many pixels of each class are found, are there, and both, of one image."""
        import torch
        from torch.nn import functional

        logits = enlarged(logits[None], *truth.shape)
        counted, labels = truth != VOID, truth.long()
        loss = functional.cross_entropy(logits, labels[None], ignore_index=VOID, reduction="sum")
        predicted = logits[0].argmax(0)
        count = lambda values: torch.bincount(values, minlength=len(self.names)).cpu().numpy()  # noqa: E731
        shape = fitting(*truth.shape)
        return {
            "hits": count(predicted[counted & (predicted == labels)]),
            "found": count(predicted[counted]),
            "there": count(labels[counted]),
            "loss": float(loss),
            "shown": zlib.compress(shrunk(predicted.cpu().numpy(), *shape).astype(np.uint8).tobytes(), 1),
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """Mean intersection over union and mean Dice of the classes that occur, share of right pixels, loss."""
        hits, found, there = (records[name].sum(0).astype(float) for name in ("hits", "found", "there"))
        overlap, dice = _overlaps(hits, found, there)
        pixels = max(1.0, there.sum())
        return {
            "mean_iou": float(np.nanmean(overlap)) if there.any() else 0.0,
            "mean_dice": float(np.nanmean(dice)) if there.any() else 0.0,
            "pixel_accuracy": float(hits.sum() / pixels),
            "loss": float(records["loss"].sum() / pixels),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        hits, found, there = (records[name].sum(0).astype(float) for name in ("hits", "found", "there"))
        overlap, dice = _overlaps(hits, found, there)
        share = there / max(1.0, there.sum())
        rows = [
            [name, float(share[i]), float(overlap[i]), float(dice[i])]
            for i, name in enumerate(self.names)
            if not np.isnan(overlap[i])
        ]
        columns = ["class", "share of pixels", "intersection over union", "Dice"]
        return [{"kind": "table", "title": "Classes", "columns": columns, "rows": rows}]

    def pictures(self, records: Records, example: Callable[[int], Example]) -> list[dict[str, Any]]:
        """Show the images with the most wrong pixels: what is there, and beside it what was found."""
        right, pixels = records["hits"].sum(1), np.maximum(1, records["there"].sum(1))
        shown = []
        for row in np.argsort(right / pixels, kind="stable")[:_MOST_SHOWN].tolist():
            one = example(row)
            height, width = fitting(*one["size"].tolist())
            image = shrunk(pixels_of(one), height, width)
            found = np.frombuffer(zlib.decompress(records["shown"][row]), np.uint8).reshape(height, width)
            both = np.concatenate([tinted(image, shrunk(_truth(one), height, width)), tinted(image, found)], 1)
            shown.append({"image": data_of(both), "caption": f"{right[row] / pixels[row]:.1%} right (left: the mask)"})
        return [{"kind": "pictures", "title": "Worst errors", "pictures": shown}]

    def caption(self, example: Example) -> str:
        counts = np.bincount(self._target(example).reshape(-1), minlength=VOID + 1)[: len(self.names)]
        order = np.argsort(-counts, kind="stable")[:3].tolist()
        return ", ".join(f"{counts[i] / max(1, counts.sum()):.0%} {self.names[i]}" for i in order if counts[i])

    def shown(self, pixels: np.ndarray, example: Example) -> np.ndarray:
        return tinted(pixels, self._target(example))

    # -- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        answers = []
        for picture, pixels in self.asked_pictures(asked):  # each by itself: an answer depends on its image alone
            with torch.inference_mode():
                logits = self._logits(model, self.images([self.as_shown(pixels)]).to(model.device))
                found = enlarged(logits, *pixels.shape[:2])[0].argmax(0).cpu().numpy()
            segments = [
                {"label": name, "share": round(float(inside.mean()), 6), "mask": runs(inside)}
                for number, name in enumerate(self.names)
                if (inside := found == number).any()
            ]
            answers.append({"image": picture.name, "segments": segments})
        return answers

    def illustrated(self, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> np.ndarray | None:
        [(_, pixels)] = self.asked_pictures([asked])
        mask = np.zeros(pixels.shape[:2], np.uint8)
        for one in answer["segments"]:
            mask[unpacked(one["mask"]["counts"], *mask.shape)] = self.names.index(one["label"])
        return tinted(pixels, mask)


class _ByMasks(ImageSegmentation):
    """A class for each pixel by a model that finds a set of masks: of an image each class is one segment, found as a whole.

    A pixel's chance of a class is the sum, over the masks, of its chance of being inside times the mask's of that class.

    Source: Cheng et al. 2021, sections 3.3 and 3.4.
    """

    name = ""  # that of the task it stands for
    auto_class = "AutoModelForUniversalSegmentation"
    _sets: MaskLoss

    def check(self, model: Any) -> None:
        super().check(model)
        self._sets = MaskLoss.of(model)

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = super().collate(examples)
        counts = [len(labels[labels >= 0].unique()) for labels in batch.targets["labels"]]
        return replace(batch, weights=self._sets.weights(counts))

    def _logits(self, model: Any, images: torch.Tensor) -> torch.Tensor:
        import torch

        output = model(pixel_values=images.to(model.dtype), output_auxiliary_logits=False)
        classes = output.class_queries_logits.float().softmax(-1)[..., :-1]
        found = torch.einsum("bqc,bqhw->bchw", classes, output.masks_queries_logits.float().sigmoid())
        return found.clamp(min=1e-6).log()

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        targets = []
        for labels in batch.targets["labels"]:
            numbers = labels[labels >= 0].unique()
            targets.append(Target(numbers, labels == numbers[:, None, None], labels >= 0))
        pixels = batch.inputs["pixel_values"].to(model.dtype)
        return self._sets(model(pixel_values=pixels, output_auxiliary_logits=True), targets)


@cache
def _by_masks(task: type[Task]) -> type[Task]:
    """Return the task as a model that finds a set of masks tells classes apart."""
    return type(task.__name__, (_ByMasks,), {"name": task.name, "Settings": task.Settings})


@cache
def _of_objects(task: type[Task]) -> type[Task]:
    """Return the task as a model does it that finds a set of masks."""
    return type(task.__name__, (ObjectSegmentation,), {"name": task.name, "Settings": task.Settings})


def _void(settings: ImageSegmentationSettings) -> int:
    return VOID if settings.void is None else settings.void


def enlarged(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return maps [images, classes, ...] in another size, between their values."""
    from torch.nn import functional

    return functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)


def _facts(labels: list[str], numbers: list[int]) -> dict[str, Any]:
    if len(labels) >= VOID:
        raise UserError(
            f"data.mask: the masks hold {len(labels)} numbers, and at most {VOID - 1} classes are told apart. If they number "
            "single objects, take a Mask2Former or MaskFormer (--preset mask2former-nano), or give each pixel the number of "
            "its class."
        )
    return {"labels": labels, "numbers": numbers}


def _numbers_in(row: Row, decode: Decode) -> set[int] | str:
    """Return the numbers of a row's mask, or why it cannot be decoded."""
    found = decode(row.values["mask"], "mask")
    return f"{row.values['mask'].name} {found}" if isinstance(found, str) else set(np.unique(found).tolist())


def _truth(example: Example) -> np.ndarray:
    """Return an example's mask as it was kept: uint8 [height, width]."""
    return example["truth"].reshape(*example["size"].tolist())


def _overlaps(hits: np.ndarray, found: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return intersection over union and Dice of each class; NaN for one that is neither there nor found."""
    with np.errstate(invalid="ignore"):
        return hits / (found + there - hits), 2 * hits / (found + there)
