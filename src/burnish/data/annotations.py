"""Files that say which objects images show, as the field keeps them: COCO, VOC and YOLO."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from burnish.data.masks import Segments
from burnish.data.pictures import Picture
from burnish.errors import UserError
from burnish.task import BrokenRow, Row

#: Folders in which images lie beside their annotations.
_IMAGE_FOLDERS = (".", "images", "../images", "../JPEGImages", "JPEGImages")
_MOST_BYTES = 2**24


def is_coco(value: Any) -> bool:
    """Return whether the content of a JSON file is laid out as COCO."""
    return isinstance(value, Mapping) and all(isinstance(value.get(name), list) for name in ("images", "annotations"))


def coco_rows(content: Mapping[str, Any], path: Path) -> Iterator[Row | BrokenRow]:
    """Yield a row for each image: its file, and its objects with the names of their categories.

    Source: Lin et al. 2014 and the data format page of COCO.
    """
    try:
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for number, annotation in enumerate(content["annotations"], 1):
            if annotation["image_id"] not in of_image:
                yield BrokenRow(
                    f"{path}:annotation {number}", f"is of image {annotation['image_id']}, which is not there"
                )
            else:
                of_image[annotation["image_id"]].append(annotation)
        for image in content["images"]:
            if (panoptic := next((one for one in of_image[image["id"]] if "segments_info" in one), None)) is not None:
                yield _panoptic_row(image, panoptic, content["categories"], path)
                continue
            where, found = f"{path}:{image['file_name']}", of_image[image["id"]]
            unknown = next((one["category_id"] for one in found if one["category_id"] not in names), None)
            file = _image_file(path.parent, image["file_name"])
            if unknown is not None:
                yield BrokenRow(where, f"has an object of category {unknown}, which 'categories' does not name")
            elif file is None:
                yield BrokenRow(where, f"its image lies neither beside {path.name} nor in images/")
            else:
                objects = {
                    "bbox": [one["bbox"] for one in found],
                    "category": [names[one["category_id"]] for one in found],
                    "ignored": [bool(one.get("iscrowd", 0)) for one in found],
                    "order": "xywh",
                }
                values: dict[str, Any] = {"image": str(file), "objects": objects}
                if all(one.get("segmentation") for one in found):
                    outlines = [one["segmentation"] for one in found]
                    named = {name: objects[name] for name in ("category", "ignored")}
                    values["mask"] = {**named, "segmentation": outlines}
                yield Row(values, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not laid out as COCO: images with id and file_name, annotations with image_id, category_id and "
            f"bbox, categories with id and name ({error!r})."
        ) from error


def _panoptic_row(
    image: Mapping[str, Any], annotation: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], path: Path
) -> Row | BrokenRow:
    """Return the row of an image with its segments, which a picture numbers.

    Source: Kirillov et al. 2019 and COCO's panoptic format: the pictures lie in a folder with the name of the json.
    """
    where, names = f"{path}:{image['file_name']}", {one["id"]: str(one["name"]) for one in categories}
    file = _image_file(path.parent, image["file_name"])
    mask = _image_file(path.parent, annotation["file_name"], (path.stem, "masks", "annotations", "."))
    unknown = next((one for one in annotation["segments_info"] if one["category_id"] not in names), None)
    if unknown is not None:
        return BrokenRow(where, f"has a segment of category {unknown['category_id']}, which 'categories' does not name")
    if file is None or mask is None:
        lacking = "image lies neither beside it nor in images/" if file is None else f"mask lies not in {path.stem}/"
        return BrokenRow(where, f"its {lacking}")
    named = {int(one["id"]): names[one["category_id"]] for one in annotation["segments_info"]}
    crowds = frozenset(int(one["id"]) for one in annotation["segments_info"] if one.get("iscrowd"))
    stuff = frozenset(str(one["name"]) for one in categories if not one.get("isthing", 1))
    return Row({"image": str(file), "mask": Segments(Picture(str(mask), mask), named, crowds, stuff)}, where)


def voc_row(path: Path) -> Row | BrokenRow:
    """Return the row of an XML file: its image, and its objects.

    Source: Everingham et al. 2010, the annotations of PASCAL VOC.
    """
    where = str(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            return BrokenRow(where, "is larger than 16 MiB")
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            return BrokenRow(where, "declares entities, which annotations do without")
        root = ElementTree.fromstring(text)
    except OSError as error:
        return BrokenRow(where, f"cannot be read ({error.strerror})")
    except ElementTree.ParseError as error:
        return BrokenRow(where, f"is not valid XML ({error})")
    name = root.findtext("filename")
    file = _image_file(path.parent, name.strip()) if name and name.strip() else None
    if file is None:
        return BrokenRow(where, f"its image {name!r} lies neither beside it nor in ../JPEGImages")
    boxes, names, ignored = [], [], []
    for number, one in enumerate(root.findall("object"), 1):
        edges = [one.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        try:
            boxes.append([float(edge) for edge in edges])  # type: ignore  (None is a TypeError)
        except (TypeError, ValueError):
            return BrokenRow(where, f"object {number} has no bndbox of four numbers")
        names.append((one.findtext("name") or "").strip())
        ignored.append((one.findtext("difficult") or "0").strip() == "1")
    objects = {"bbox": boxes, "category": names, "ignored": ignored, "order": "xyxy"}
    return Row({"image": str(file), "objects": objects}, where)


def yolo_file(image: Path) -> Path | None:
    """Return the file that has the objects of an image in YOLO's layout, whether it is there or not.

    `images/A.jpg` has its objects in `labels/A.txt`. None: no folder `labels` lies beside a folder `images` around it.
    """
    parts = list(image.absolute().parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if not places:
        return None
    parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt") if Path(*parts[: places[-1] + 1]).is_dir() else None


def yolo_objects(file: Path) -> dict[str, Any] | str:
    """Return the objects of a file, a line for each: class, middle and size as shares of the image; none without a file.

    A line that cannot be read is returned as what is wrong with it.

    Source: the data set layout of darknet and Ultralytics.
    """
    names = _class_names(next(place for place in file.parents if place.name == "labels").parent)
    boxes, categories = [], []
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        return f"its labels {file} cannot be read ({error})"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            category, *box = map(float, line.split())
        except ValueError:
            category, box = 0.0, []
        if len(box) != 4 or not category.is_integer():
            return f"{file}:{number} is not a class and four numbers: x y width height"
        if names and not 0 <= category < len(names):
            return f"{file}:{number} has the class {category:g}; there are {len(names)}, from 0"
        boxes.append(box)
        categories.append(names[int(category)] if names else str(int(category)))
    return {"bbox": boxes, "category": categories, "order": "cxcywh"}


@lru_cache(maxsize=64)
def _class_names(folder: Path) -> list[str]:
    """Return the names of the classes by the first data.yaml or classes.txt in a folder or above it; nothing without one."""
    for place in (folder, folder.parent):
        for name in ("classes.txt", "data.yaml", "dataset.yaml"):
            file = place / name
            if not file.is_file():
                continue
            try:
                text = file.read_text(encoding="utf-8")
                if name == "classes.txt":
                    return [line.strip() for line in text.splitlines() if line.strip()]
                found = yaml.safe_load(text)["names"]
                return [str(found[key]) for key in sorted(found)] if isinstance(found, dict) else list(map(str, found))
            except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
                raise UserError(f"{file}: holds no list `names` of classes ({error!r}).") from error
    return []


def _image_file(folder: Path, name: str, places: Sequence[str] = _IMAGE_FOLDERS) -> Path | None:
    """Return where an image lies that an annotation in `folder` names, in one of `places` there."""
    name = re.sub(r"\\", "/", name)
    for place in places:
        for tried in (folder / place / name, folder / place / Path(name).name):
            if os.path.isfile(tried):
                return tried.resolve()
    return None
