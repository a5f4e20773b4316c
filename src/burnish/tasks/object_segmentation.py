"""Segmentation by models that give a set of masks: single objects, or every pixel's object or stuff (panoptic)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.augment import motion, moved, moves
from burnish.data.masks import BACKGROUND, Segment, Segments, Shapes, numbered, outlined, runs, shrunk, tinted, unpacked
from burnish.data.media import Decode, Decoders
from burnish.data.processor import resize
from burnish.errors import UserError, nearest
from burnish.task import Batch, Example, Records, Row, label_options
from burnish.tasks import average_precision, panoptic_quality
from burnish.tasks.images import ImageTask, data_of, fitting, pixels_of, refuse_blends
from burnish.tasks.mask_loss import MaskLoss, Target

if TYPE_CHECKING:
    import torch

#: Pictures of the worst errors in the report.
_MOST_SHOWN = 24
#: A panoptic segment of which less than this share is left by better ones is dropped (Cheng et al. 2021, section 3.4).
_LEFT_SHARE = 0.8
#: Colours of segments go round after so many.
_COLORS = 250


@dataclass(frozen=True)
class Found:
    """What a model found in an image, best first.

    Args:
        insides: bool [found, height, width].
        scores, labels: of each.
    """

    insides: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class ObjectSegmentation(ImageTask):
    """Masks learned by matching what the model finds with what is there (Cheng et al. 2021); see `MaskLoss`.

    The loss has a term of classes, a mean over the queries of the global batch, and one of masks, a mean over its segments.
    """

    auto_class = "AutoModelForUniversalSegmentation"
    lower_is_better = frozenset()

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        tokenizer.do_center_crop = False  # masks are for the whole image
        if "height" not in tokenizer.size:
            size = dict(tokenizer.size)
            resize(tokenizer, size.get("shortest_edge") or max(size.values()))
        self.panoptic = self.settings.kind == "panoptic"
        self.metric_names = (panoptic_quality if self.panoptic else average_precision).SUMMARY
        self._loss: MaskLoss | None = None

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"image": data.image, "mask": data.mask}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Return the names of the classes, and which of them are stuff: not counted, one segment an image at most."""
        names: set[str] = set()
        stuff: set[str] = set()
        plain = []
        for row in rows:
            mask = row.values["mask"]
            if isinstance(mask, Shapes):
                names |= set(mask.names)
                stuff.add(BACKGROUND)
            elif isinstance(mask, Segments):
                names |= set(mask.names.values())
                stuff |= mask.stuff
            else:
                plain.append(row)
        if plain:
            with Decoders() as decoders:
                for numbers in decoders.each(plain, _numbers_in):
                    for name, counted in (_meaning(settings, number) for number in numbers if number != settings.void):
                        names.add(name)
                        stuff |= set() if counted else {name}
        wanted = names | (stuff & {BACKGROUND}) if settings.kind == "panoptic" else names - stuff
        if not wanted:
            raise UserError("data.mask: no training row has an object, so there is nothing to find.")
        labels = sorted(wanted)
        return {"labels": labels, "stuff": sorted(stuff & wanted), "left_out": sorted((names | stuff) - wanted)}

    @property
    def names(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.facts["labels"]

    def model_options(self) -> dict[str, Any]:
        return label_options(self.names)

    def check(self, model: Any) -> None:
        super().check(model)
        refuse_blends(self.augment, "masks")
        self._loss = MaskLoss.of(model)

    # -- rows to batches ---------------------------------------------------------------------------------------------

    def example(self, row: Row, decode: Decode) -> Example | str:
        picture, mask = row.values["image"], row.values["mask"]
        pixels = decode(picture, "color")
        if isinstance(pixels, str):
            return f"{picture.name} {pixels}"
        height, width = pixels.shape[:2]
        found = self._segments(mask, decode, height, width)
        if isinstance(found, str):
            return found
        segments, known = found
        packed = [np.array(runs(inside)["counts"]) for inside in (known, *(one.inside for one in segments))]
        return {
            **self.as_shown(pixels),
            "size": np.array([height, width]),
            "runs": np.concatenate(packed),
            "lengths": np.array([len(one) for one in packed]),
            "numbers": np.array([self.names.index(one.name) for one in segments], np.int64),
            "ignored": np.array([one.ignored for one in segments], np.int64),
        }

    def _segments(self, mask: Any, decode: Decode, height: int, width: int) -> tuple[list[Segment], np.ndarray] | str:
        """Return what is to be found in an image and which of its pixels are known, or why its mask does not fit."""
        if isinstance(mask, Shapes):
            found: list[Segment | str] = list(outlined(mask, height, width))
            around = BACKGROUND
        else:
            picture, coloured = (mask.picture, True) if isinstance(mask, Segments) else (mask, False)
            pixels = decode(picture, "color" if coloured else "mask")
            if isinstance(pixels, str):
                return f"{picture.name} {pixels}"
            if pixels.shape[:2] != (height, width):
                return (
                    f"the image is {width} wide and {height} high, {picture.name} {pixels.shape[1]} and {pixels.shape[0]} "
                    "(if the image says that it is to be turned, turn it for good)"
                )
            found = list(numbered(mask, pixels) if isinstance(mask, Segments) else self._by_numbers(pixels))
            around = None
        segments: list[Segment] = []
        for one in found:
            if isinstance(one, str):
                return one
            if one.name not in self.names and one.name not in self.facts["left_out"]:
                known = ", ".join(self.names[:10])
                return (
                    f"{one.name!r} does not occur in the training rows (there: {known}).{nearest(one.name, self.names)}"
                )
            segments.append(one)
        return self._apart(segments, around, height, width)

    def _by_numbers(self, pixels: np.ndarray) -> Iterator[Segment]:
        """Yield what each number of a mask [height, width] stands for."""
        for number in np.unique(pixels).tolist():
            if number != self.settings.void:
                yield Segment(_meaning(self.settings, number)[0], pixels == number)

    def _apart(
        self, segments: Sequence[Segment], around: str | None, height: int, width: int
    ) -> tuple[list[Segment], np.ndarray]:
        """Return segments as the task has them, and which pixels are known.

        Args:
            around: the stuff that pixels of no segment show; None: nobody knows it.
        """
        known = np.ones((height, width), bool)
        if not self.panoptic:
            return [one for one in segments if one.name in self.names and one.inside.any()], known
        free, parts = known.copy(), []
        for one in reversed(segments):  # later ones lie over earlier ones
            parts.append(Segment(one.name, one.inside & free, one.ignored))
            free &= ~one.inside
        if around in self.names:
            parts.append(Segment(str(around), free))
        else:
            known = ~free
        for name in self.facts["stuff"]:
            same = [one for one in parts if one.name == name and not one.ignored]
            whole = Segment(name, np.any([one.inside for one in same], 0)) if same else None
            parts = [one for one in parts if one not in same] + ([whole] if whole else [])
        return [one for one in parts if one.inside.any()], known

    def _masks(self, example: Example) -> np.ndarray:
        """Return which pixels of an example are known and then those of each segment: bool [1 + segments, height, width]."""
        ends = np.cumsum(example["lengths"])
        return np.stack([unpacked(part, *example["size"]) for part in np.split(example["runs"], ends[:-1])])

    def _target(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return what is to be found as training sees it: classes [segments], and what is known and the segments' masks as
        `_masks` gives them, uint8 in the size of the model's image."""
        import torch

        height, width = example["shape"].tolist()
        masks = np.stack([shrunk(one, height, width) for one in self._masks(example)]).astype(np.uint8)
        if "draw" in example and moves(self.augment):
            matrix = motion(self.augment, int(example["draw"][0]), height, width)
            all_of_them = torch.from_numpy(masks)[:, None].float()  # beyond an edge comes 0: not known
            masks = moved(all_of_them, [matrix] * len(masks), nearest=True)[:, 0].numpy().astype(np.uint8)
        known, masks = masks[:1], masks[1:]
        crowds = example["ignored"] > 0
        known = known * (1 - masks[crowds].max(0, initial=0))
        stays = ~crowds & (masks * known).any((1, 2))
        return example["numbers"][stays], np.concatenate([known, masks[stays]])

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        assert self._loss is not None  # `check` comes before
        targets = [self._target(example) for example in examples]
        counts = [len(numbers) for numbers, _ in targets]
        found = {
            "numbers": np.concatenate([numbers for numbers, _ in targets]).astype(np.int64),
            "masks": np.concatenate([masks for _, masks in targets]),
            "counts": np.array(counts),
            "size": np.stack([example["size"] for example in examples]).astype(np.int64),
            "true_counts": np.array([len(example["numbers"]) for example in examples]),
            **{
                f"true_{name}": np.concatenate([example[name] for example in examples]).astype(np.int64)
                for name in ("runs", "lengths", "numbers", "ignored")
            },
        }
        lengths = [int(example["positions"][0]) for example in examples]
        tensors = {name: torch.from_numpy(value) for name, value in found.items()}
        return Batch({"pixel_values": self.images(examples)}, tensors, self._loss.weights(counts), lengths)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        assert self._loss is not None  # `check` comes before
        pixels, counts = batch.inputs["pixel_values"].to(model.dtype), batch.targets["counts"].tolist()
        numbers = batch.targets["numbers"].split(counts)
        masks = batch.targets["masks"].split([1 + count for count in counts])
        targets = [Target(own, mask[1:], mask[0]) for own, mask in zip(numbers, masks, strict=True)]
        return self._loss(model(pixel_values=pixels, output_auxiliary_logits=True), targets)

    # -- what is found -----------------------------------------------------------------------------------------------

    def _found(self, classes: torch.Tensor, maps: torch.Tensor, height: int, width: int, least: float = 0.0) -> Found:
        """Return what a model finds in an image.

        Args:
            classes: logits [queries, classes + 1]; `maps` likewise: [queries, ...].
            height, width: of the image.
            least: score from which an object is wanted.
        """
        chances = classes.float().softmax(-1).cpu()
        if self.panoptic:
            return self._partition(chances, maps, height, width)
        most = min(len(classes), average_precision.MOST_BOXES)
        scores, chosen = (value.tolist() for value in chances[:, :-1].flatten().topk(most))
        found: list[tuple[float, int, np.ndarray]] = []
        for score, place in zip(scores, chosen, strict=True):
            query, label = divmod(place, len(self.names))
            certain = _enlarged(maps[query], height, width)
            inside = certain > 0.5
            score *= float(certain[inside].mean()) if inside.any() else 0.0
            if inside.any() and score >= least:
                found.append((score, label, inside))
        return _best_first(found, height, width)

    def _partition(self, chances: torch.Tensor, maps: torch.Tensor, height: int, width: int) -> Found:
        """Return segments that do not overlap: each pixel goes to the query that is most certain of it.

        Source: Cheng et al. 2021, section 3.4.
        """
        scores, labels = (value.tolist() for value in chances.max(-1))
        kept = [
            query
            for query, label in enumerate(labels)
            if label < len(self.names) and scores[query] >= self.settings.threshold
        ]
        best, winner = np.zeros((height, width), np.float32), np.full((height, width), -1)
        whole = {}
        for query in kept:
            certain = _enlarged(maps[query], height, width)
            wins = certain * scores[query] > best
            best[wins], winner[wins] = certain[wins] * scores[query], query
            whole[query] = certain >= 0.5
        found: dict[Any, tuple[float, int, np.ndarray]] = {}
        for query in kept:
            inside = (winner == query) & whole[query]
            if not inside.any() or inside.sum() < _LEFT_SHARE * whole[query].sum():
                continue
            name = self.names[labels[query]]
            key = name if name in self.facts["stuff"] else query
            score, _, before = found.get(key, (0.0, 0, np.zeros_like(inside)))
            found[key] = max(score, scores[query]), labels[query], before | inside
        return _best_first(list(found.values()), height, width)

    def score(self, model: Any, batch: Batch) -> Records:
        output = model(pixel_values=batch.inputs["pixel_values"].to(model.dtype), output_auxiliary_logits=False)
        given = {name: value.cpu().numpy() for name, value in batch.targets.items() if name.startswith("true_")}
        counts = given.pop("true_counts")
        ends, segments = np.cumsum(counts), np.cumsum(counts + 1)
        lengths = np.split(given["true_lengths"], segments[:-1])
        packed = np.split(given["true_runs"], np.cumsum([part.sum() for part in lengths])[:-1])
        records = []
        for index, (height, width) in enumerate(batch.targets["size"].tolist()):
            own = slice(ends[index] - counts[index], ends[index])
            truth = {
                "size": np.array([height, width]),
                "runs": packed[index],
                "lengths": lengths[index],
                "numbers": given["true_numbers"][own],
                "ignored": given["true_ignored"][own],
            }
            maps = output.masks_queries_logits[index]
            records.append(self._compared(self._found(output.class_queries_logits[index], maps, height, width), truth))
        result = {}
        for name in records[0]:
            result[name] = np.empty(len(records), object)
            result[name][:] = [record[name] for record in records]
        return result

    def _compared(self, found: Found, truth: Example) -> dict[str, Any]:
        """Return what became of the segments found in an image, and a small picture of those that are good enough."""
        height, width = truth["size"].tolist()
        known, *true = self._masks(truth)
        ours = found.insides.reshape(len(found.scores), height * width).astype(np.float32)
        theirs = np.array(true, np.float32).reshape(len(true), height * width)
        shared, unknown = (ours @ theirs.T).astype(np.float64), ours @ (~known).reshape(-1)
        sizes, true_sizes = (part.sum(1, dtype=np.float64) for part in (ours, theirs))
        labels, crowds = truth["numbers"].astype(np.int64), truth["ignored"] > 0
        shape = fitting(height, width)
        shown = shrunk(_painted(found.insides[found.scores >= self.settings.threshold], height, width), *shape)
        record: dict[str, Any] = {"shown": zlib.compress(shown.tobytes(), 1)}
        if self.panoptic:
            given = shared, sizes, found.labels, true_sizes, labels, crowds, unknown.astype(np.float64)
            return record | {"counts": panoptic_quality.count(*given, len(self.names))}
        given = shared, sizes, found.scores, found.labels, true_sizes, labels, crowds
        return record | {"matched": average_precision.match(*given, len(self.names))}

    def metrics(self, records: Records) -> dict[str, float]:
        """COCO's mean average precision of masks, or of panoptic segmentation its quality and the two factors of it."""
        if self.panoptic:
            return panoptic_quality.summary(records["counts"].sum())
        return average_precision.summary(list(records["matched"]))

    # -- the report --------------------------------------------------------------------------------------------------

    def figures(self, records: Records) -> list[dict[str, Any]]:
        if not self.panoptic:
            return [average_precision.table(list(records["matched"]), self.names, "objects")]
        counts = records["counts"].sum()
        rows = [
            [name, int(counts[i, 1] + counts[i, 3]), *map(float, values)]
            for i, (name, values) in enumerate(zip(self.names, panoptic_quality.quality(counts), strict=True))
            if not np.isnan(values[0])
        ]
        columns = ["category", "segments", "panoptic quality", "of segmentation", "of recognition"]
        return [{"kind": "table", "title": "Categories", "columns": columns, "rows": rows}]

    def caption(self, example: Example) -> str:
        counts = Counter(self.names[number] for number in self._target(example)[0].tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

    def shown(self, pixels: np.ndarray, example: Example) -> np.ndarray:
        return tinted(pixels, _painted(self._target(example)[1][1:] > 0, *pixels.shape[:2]))

    def pictures(self, records: Records, example: Callable[[int], Example]) -> list[dict[str, Any]]:
        """Show the images with most segments missed or wrongly found: what is there, and beside it what was found."""
        if self.panoptic:
            errors = np.array([counts[:, 2:].sum() for counts in records["counts"]])
        else:
            given = self.settings.threshold
            errors = np.array([average_precision.mistakes(image, given) for image in records["matched"]])
        shown = []
        for row in np.argsort(-errors, kind="stable")[:_MOST_SHOWN].tolist():
            if errors[row]:
                one = example(row)
                height, width = fitting(*one["size"].tolist())
                image = shrunk(pixels_of(one), height, width)
                truth = shrunk(_painted(self._masks(one)[1:], *one["size"].tolist()), height, width)
                found = np.frombuffer(zlib.decompress(records["shown"][row]), np.uint8).reshape(height, width)
                both = np.concatenate([tinted(image, truth), tinted(image, found)], 1)
                caption = f"{int(errors[row])} missed or wrongly found (left: the mask)"
                shown.append({"image": data_of(both), "caption": caption})
        return [{"kind": "pictures", "title": "Worst errors", "pictures": shown}]

    # -- predictions -------------------------------------------------------------------------------------------------

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        answers = []
        for picture, pixels in self.asked_pictures(asked):  # each by itself: an answer depends on its image alone
            images = self.images([self.as_shown(pixels)]).to(model.device, model.dtype)
            with torch.inference_mode():
                output = model(pixel_values=images)
            classes, maps = output.class_queries_logits[0], output.masks_queries_logits[0]
            found = self._found(classes, maps, pixels.shape[0], pixels.shape[1], self.settings.threshold)
            segments = [
                {
                    "label": self.names[label],
                    "score": round(score, 6),
                    "share": round(float(inside.mean()), 6),
                    "mask": runs(inside),
                }
                for label, score, inside in zip(
                    found.labels.tolist(), found.scores.tolist(), found.insides, strict=True
                )
            ]
            answers.append({"image": picture.name, "segments": segments})
        return answers

    def illustrated(self, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> np.ndarray | None:
        [(_, pixels)] = self.asked_pictures([asked])
        height, width = pixels.shape[:2]
        insides = [unpacked(one["mask"]["counts"], height, width) for one in answer["segments"]]
        return tinted(pixels, _painted(np.array(insides, bool).reshape(-1, height, width), height, width))


def _numbers_in(row: Row, decode: Decode) -> list[int]:
    """Return the numbers of a row's mask; of one that cannot be decoded none, since it is reported later."""
    found = decode(row.values["mask"], "mask")
    return [] if isinstance(found, str) else np.unique(found).tolist()


def _meaning(settings: Any, number: int) -> tuple[str, bool]:
    """Return the class that a mask's number stands for, and whether it is an object and not stuff."""
    if settings.divisor is None:
        names = settings.labels or (BACKGROUND, "object")
        return names[min(1, number)], number > 0
    kind = number // settings.divisor or number
    named = settings.labels[kind] if kind < len(settings.labels) else str(kind)
    return named, number >= settings.divisor


def _enlarged(logits: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Return how certain a map [...] is of each pixel of its image: float32 [height, width]."""
    from torch.nn import functional

    wide = functional.interpolate(logits[None, None].float(), (height, width), mode="bilinear", align_corners=False)
    return wide[0, 0].sigmoid().cpu().numpy()


def _best_first(found: list[tuple[float, int, np.ndarray]], height: int, width: int) -> Found:
    found = sorted(found, key=lambda one: -one[0])
    insides = np.array([inside for _, _, inside in found], bool).reshape(-1, height, width)
    scores = np.array([score for score, _, _ in found], np.float64)
    return Found(insides, scores, np.array([label for _, label, _ in found], np.int64))


def _painted(insides: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return masks, the best one on top, as one with a number for each: uint8 [height, width]."""
    mask = np.zeros((height, width), np.uint8)
    for number, inside in reversed(list(enumerate(insides))):
        mask[inside] = 1 + number % _COLORS
    return mask
