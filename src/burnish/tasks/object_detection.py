"""Object detection: boxes around the things an image shows, each with the name of its category."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.augment import motion, moves
from burnish.data.boxes import areas, checked, common, cut, merged, moved, shares, tiles
from burnish.data.media import Decode
from burnish.data.processor import resize, shaped
from burnish.errors import UserError, nearest
from burnish.task import Batch, Example, Records, Row, label_options
from burnish.tasks.average_precision import MOST_BOXES, SUMMARY, match, mistakes, summary, table
from burnish.tasks.images import ImageTask, data_of, pixels_of, refuse_blends
from burnish.tasks.set_loss import SetLoss

if TYPE_CHECKING:
    import torch

#: Pictures of the worst errors in the report.
_MOST_SHOWN = 24
#: Colours of boxes that are there and of those that are found.
_TRUE, _FOUND = (40, 170, 80), (235, 110, 20)
#: How near a box must come to the edge of its tile to count as torn by it, in pixels of the image.
_NEAR = 2.0


@dataclass(frozen=True)
class Found:
    """What a model found in an image, best first.

    Args:
        boxes: in pixels of the image: float32 [found, 4].
        scores, labels: of each.
        torn: whether its tile ends there and the image goes on.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    torn: np.ndarray


class ObjectDetectionSettings(TaskSettings):
    """Find objects in images."""

    box: Literal["xywh", "xyxy"] = "xywh"
    """What the four numbers of a box in a table are, in pixels: left, top, width and height, or left, top, right and bottom.
    COCO, VOC and YOLO files say it themselves."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Score from which a box is given as an answer. Average precision is measured over all of them."""
    tile: int | None = Field(None, ge=32, le=8192)
    """Cut larger images into overlapping squares of this many pixels, each shown to the model by itself, and put together
    what is found on them. Default: every image is shown whole."""


class ObjectDetection(ImageTask):
    """Boxes learned by matching what the model finds with what is there (Carion et al. 2020); see `SetLoss`.

    The loss has a term of classes and one of boxes, each a mean over the global batch. A batch norm keeps the statistics it
    has, and queries of noised boxes, as RT-DETR and D-FINE have in training, are left out: both would tie an image's loss to
    the other images of its micro-batch.
    """

    name = "object-detection"
    Settings = ObjectDetectionSettings
    auto_class = "AutoModelForObjectDetection"
    version = 2
    metric_names = SUMMARY
    lower_is_better = frozenset()

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        size = tokenizer.size
        if "height" not in size:  # images of one size: else padding would reach into the convolutions of a row
            resize(tokenizer, size.get("shortest_edge") or max(size.values()))
        self._loss: SetLoss | None = None
        self._queries = 0

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"image": data.image, "objects": data.objects}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: ObjectDetectionSettings) -> dict[str, Any]:
        """Return the names of the categories and how many objects have each."""
        counts: Counter[str] = Counter()
        for row in rows:
            objects = row.values["objects"]
            counts.update(objects.names)
        if not counts:
            raise UserError("data.objects: no training row has a box, so there is nothing to find.")
        labels = sorted(counts)
        return {"labels": labels, "counts": [counts[label] for label in labels]}

    @property
    def names(self) -> list[str]:
        """The categories, in the order of the model's outputs."""
        return self.facts["labels"]

    def model_options(self) -> dict[str, Any]:
        return label_options(self.names)

    def check(self, model: Any) -> None:
        """Put the loss that sums in the model's place for it.

        Raises:
            UserError: the model's loss is not known, or images are blended.
        """
        super().check(model)
        refuse_blends(self.augment, "boxes")
        self._loss = SetLoss.of(model)
        model.loss_function = self._loss
        config = model.config
        config.auxiliary_loss = config.model_type != "yolos"  # its class does not hand over what its layers give
        if getattr(config, "num_denoising", 0):
            config.num_denoising = 0
        self._queries = getattr(config, "num_queries", None) or config.num_detection_tokens

    # -- rows to examples --------------------------------------------------------------------------------------------

    def examples(self, row: Row, decode: Decode) -> Sequence[Example] | str:
        picture, objects = row.values["image"], row.values["objects"]
        pixels = decode(picture, "color")
        if isinstance(pixels, str):
            return f"{picture.name} {pixels}"
        height, width = pixels.shape[:2]
        boxes = checked(objects, self.settings.box, height, width)
        if isinstance(boxes, str):
            return boxes
        index = {name: number for number, name in enumerate(self.names)}
        unknown = next((name for name in objects.names if name not in index), None)
        if unknown is not None:
            return (
                f"the category {unknown!r} does not occur in the training rows (there: {', '.join(self.names[:10])})"
                f".{nearest(unknown, index)}"
            )
        numbers = np.array([index[name] for name in objects.names], np.int64)
        return [
            self._tile(pixels, place, boxes, numbers, objects.ignored, _photo(row)) for place in self._tiles(pixels)
        ]

    def _tiles(self, pixels: np.ndarray) -> Sequence[tuple[int, int, int, int]]:
        """Return the parts of an image that the model sees one by one, each [left, top, right, bottom]."""
        height, width = pixels.shape[:2]
        return list(tiles(height, width, self.settings.tile)) if self.settings.tile else [(0, 0, width, height)]

    def _tile(
        self,
        pixels: np.ndarray,
        place: tuple[int, int, int, int],
        boxes: np.ndarray,
        numbers: np.ndarray,
        ignored: np.ndarray,
        photo: int,
    ) -> Example:
        """Return a part of an image as an example: what is to be found in it, and which objects of the image it touches."""
        left, top, right, bottom = place
        inside, stays = cut(boxes - [left, top] * 2, bottom - top, right - left)
        stays &= ~ignored
        touched = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
        seen = shaped(self.processor, np.ascontiguousarray(pixels[top:bottom, left:right]))
        scale = np.array([seen.shape[1] / (right - left), seen.shape[0] / (bottom - top)] * 2)
        truth = np.column_stack([touched, numbers[touched], ignored[touched], boxes[touched]])
        return {
            "pixels": seen.reshape(-1),
            "shape": np.array(seen.shape[:2]),
            "boxes": (inside[stays] * scale).astype(np.float32).reshape(-1),
            "numbers": numbers[stays],
            "truth": truth.astype(np.float32).reshape(-1),
            "place": np.array([*place, *pixels.shape[1::-1]]),
            "photo": np.array([photo]),
        }

    def example(self, row: Row, decode: Decode) -> Example | str:
        found = self.examples(row, decode)
        return found if isinstance(found, str) else found[0]

    # -- examples to batches -----------------------------------------------------------------------------------------

    def _targets(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return what is to be found as training sees it: boxes in pixels of the model's image, and their categories."""
        boxes, numbers = example["boxes"].reshape(-1, 4), example["numbers"]
        if "draw" not in example or not moves(self.augment):
            return boxes, numbers
        height, width = example["shape"].tolist()
        matrix = motion(self.augment, int(example["draw"][0]), height, width)
        boxes, stays = moved(boxes.astype(np.float64), matrix, height, width)
        return boxes[stays], numbers[stays].astype(np.int64)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        assert self._loss is not None  # `check` comes before
        targets = [self._targets(example) for example in examples]
        inside = [shares(boxes, *example["shape"]) for example, (boxes, _) in zip(examples, targets, strict=True)]
        found = {
            "boxes": _filled(inside, 0.0).astype(np.float32),
            "numbers": _filled([names for _, names in targets], -1).astype(np.int64),
            "truth": _filled([example["truth"].reshape(-1, 7) for example in examples], -1.0),
            "place": np.stack([example["place"] for example in examples]).astype(np.int64),
            "photo": np.concatenate([example["photo"] for example in examples]),
        }
        weights = self._loss.weights([len(names) for _, names in targets], self._queries)
        lengths = [int(example["positions"][0]) for example in examples]
        tensors = {name: torch.from_numpy(value) for name, value in found.items()}
        return Batch({"pixel_values": self.images(examples)}, tensors, weights, lengths)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        labels = [
            {"class_labels": numbers[numbers >= 0], "boxes": boxes[numbers >= 0]}
            for boxes, numbers in zip(batch.targets["boxes"], batch.targets["numbers"], strict=True)
        ]
        return model(pixel_values=batch.inputs["pixel_values"].to(model.dtype), labels=labels).loss_dict

    # -- what is found -----------------------------------------------------------------------------------------------

    def _found(self, model: Any, images: torch.Tensor, places: np.ndarray) -> list[Found]:
        """Return what a model finds in images, in pixels of the photographs that they are parts of.

        Args:
            places: of each in its photograph, [left, top, right, bottom, width, height]: int64 [images, 6].
        """
        import torch

        assert self._loss is not None  # `check` comes before
        output = model(pixel_values=images.to(model.dtype))
        logits, boxes = output.logits.float(), output.pred_boxes.float()
        if self._loss.has_nothing:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        else:  # a query may stand for several classes
            classes = logits.shape[-1]
            scores, chosen = logits.sigmoid().flatten(1).topk(logits.shape[1], 1)
            labels = chosen % classes
            boxes = boxes.gather(1, (chosen // classes)[..., None].expand(-1, -1, 4))
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1).clamp(0, 1)
        found = []
        for own, score, label, place in zip(
            *(value.cpu().numpy() for value in (boxes, scores, labels)), places, strict=True
        ):
            left, top, right, bottom, width, height = place.tolist()
            own = own * np.array([right - left, bottom - top] * 2) + [left, top] * 2
            near = np.abs(own - [left, top, right, bottom]) < _NEAR
            torn = (near & (np.array([left > 0, top > 0, right < width, bottom < height]))).any(1)
            found.append(Found(own.astype(np.float32), score, label, torn))
        return found

    def score(self, model: Any, batch: Batch) -> Records:
        places = batch.targets["place"].cpu().numpy()
        found = self._found(model, batch.inputs["pixel_values"], places)
        truth = [rows[rows[:, 0] >= 0] for rows in batch.targets["truth"].cpu().numpy()]
        return {"found": _apart(found), "truth": _apart(truth), "photo": batch.targets["photo"].cpu().numpy()}

    def join(self, records: Records) -> Records:
        """Return a record for each photograph: what was found on its tiles, merged, and compared with what is there."""
        parts: dict[int, list[int]] = {}
        for row, photo in enumerate(records["photo"].tolist()):
            parts.setdefault(photo, []).append(row)
        found, truth, matched = [], [], []
        for rows in parts.values():
            whole = _together([records["found"][row] for row in rows])
            objects = {int(one[0]): one for row in rows for one in records["truth"][row]}
            true = np.stack(list(objects.values())) if objects else np.zeros((0, 7), np.float32)
            found.append(whole)
            truth.append(true)
            ignored = true[:, 2] > 0
            boxes, others = whole.boxes.astype(np.float64), true[:, 3:].astype(np.float64)
            ours = common(boxes, others), areas(boxes), whole.scores, whole.labels
            given = *ours, areas(others), true[:, 1].astype(int), ignored
            matched.append(match(*given, len(self.names), MOST_BOXES * len(rows)))
        return {
            name: _apart(values)
            for name, values in (
                ("found", found),
                ("truth", truth),
                ("matched", matched),
                ("rows", list(parts.values())),
            )
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """COCO's mean average precision over overlaps of 0.5 to 0.95, at 0.5 and at 0.75, and its mean recall."""
        return summary(list(records["matched"]))

    # -- the report --------------------------------------------------------------------------------------------------

    def figures(self, records: Records) -> list[dict[str, Any]]:
        return [table(list(records["matched"]), self.names, "boxes")]

    def caption(self, example: Example) -> str:
        counts = Counter(self.names[number] for number in self._targets(example)[1].tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

    def shown(self, pixels: np.ndarray, example: Example) -> np.ndarray:
        boxes, numbers = self._targets(example)
        return drawn(pixels, boxes, [self.names[number] for number in numbers.tolist()], _TRUE)

    def pictures(self, records: Records, example: Callable[[int], Example]) -> list[dict[str, Any]]:
        """Show images of which most is missed or wrongly found, what is there in one colour, what is found in another."""
        errors = [mistakes(image, self.settings.threshold) for image in records["matched"]]
        shown = []
        for photo in np.argsort(-np.array(errors), kind="stable"):
            for row in records["rows"][photo]:
                if errors[photo] and len(shown) < _MOST_SHOWN:
                    shown.append(self._compared(example(row), records["found"][photo], records["truth"][photo]))
        return [{"kind": "pictures", "title": "Worst errors", "pictures": shown}]

    def _compared(self, example: Example, found: Found, truth: np.ndarray) -> dict[str, Any]:
        left, top, right, bottom = example["place"][:4].tolist()
        pixels = pixels_of(example)
        scale = np.array([pixels.shape[1] / (right - left), pixels.shape[0] / (bottom - top)] * 2)
        true, ours = ((boxes - [left, top] * 2) * scale for boxes in (truth[:, 3:], found.boxes))
        given = found.scores >= self.settings.threshold
        height, width = pixels.shape[:2]
        (true, inside), (ours, seen) = cut(true, height, width), cut(ours, height, width)
        pixels = drawn(pixels, true[inside], [""] * int(inside.sum()), _TRUE)
        names = [self.names[label] for label in found.labels[given & seen].tolist()]
        pixels = drawn(pixels, ours[given & seen], names, _FOUND)
        return {"image": data_of(pixels), "caption": f"{int(inside.sum())} there, {len(names)} found"}

    # -- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        answers = []
        for picture, pixels in self.asked_pictures(asked):  # each by itself: an answer depends on its image alone
            parts = []
            for place in self._tiles(pixels):
                left, top, right, bottom = place
                images = self.images([self.as_shown(pixels[top:bottom, left:right])]).to(model.device)
                with torch.inference_mode():
                    parts += self._found(model, images, np.array([[*place, *pixels.shape[1::-1]]]))
            found = _together(parts)
            objects = [
                {"label": self.names[label], "score": round(score, 6), "box": [round(edge, 2) for edge in box]}
                for label, score, box in zip(
                    found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
                )
                if score >= self.settings.threshold
            ]
            answers.append({"image": picture.name, "objects": objects})
        return answers

    def illustrated(self, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> np.ndarray | None:
        [(_, pixels)] = self.asked_pictures([asked])
        boxes = np.array([one["box"] for one in answer["objects"]]).reshape(-1, 4)
        names = [f"{one['label']} {one['score']:.0%}" for one in answer["objects"]]
        return drawn(pixels, boxes, names, _FOUND)


def drawn(pixels: np.ndarray, boxes: np.ndarray, names: Sequence[str], color: tuple[int, int, int]) -> np.ndarray:
    """Return an image with boxes, each with its name, drawn on it; a name is as wide as its box where that can be read."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    line = max(1, round(max(image.size) / 320))
    pen = ImageDraw.Draw(image)
    for box, name in zip(boxes.tolist(), names, strict=True):
        left, top, right, bottom = box
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)
        if name:
            size = min(12 * line, 1.7 * (right - left) / len(name))
            pen.text((left + line, top + line), name, fill=color, font_size=max(9, size))
    return np.asarray(image)


def _together(parts: Sequence[Found]) -> Found:
    """Return what was found on the tiles of one image, each object once."""
    if len(parts) == 1:
        order = np.argsort(-parts[0].scores, kind="stable")
        boxes, scores, labels, torn = parts[0].boxes, parts[0].scores, parts[0].labels, parts[0].torn
        return Found(boxes[order], scores[order], labels[order], torn[order])
    names = ("boxes", "scores", "labels", "torn")
    boxes, scores, labels, torn = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    tile = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    kept = merged(boxes, scores, labels, tile, torn)
    return Found(boxes[kept], scores[kept], labels[kept], torn[kept])


def _filled(values: Sequence[np.ndarray], nothing: float) -> np.ndarray:
    """Return arrays of different lengths as one, filled up with `nothing`."""
    most = max(len(value) for value in values)
    whole = np.full((len(values), most, *values[0].shape[1:]), nothing)
    for row, value in zip(whole, values, strict=True):
        row[: len(value)] = value
    return whole


def _apart(values: Sequence[Any]) -> np.ndarray:
    """Return things of any kind as an array with one entry each."""
    found = np.empty(len(values), object)
    found[:] = list(values)
    return found


def _photo(row: Row) -> int:
    """Return a number that stands for a row."""
    return int.from_bytes(hashlib.blake2b(row.where.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")
