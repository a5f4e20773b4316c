"""Small images with coloured rectangles, and where they are, for tests of detection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def picture(
    random: np.random.Generator, side: int = 48, most: int = 2
) -> tuple[np.ndarray, list[list[int]], list[str]]:
    """Return an image with up to `most` rectangles on grey noise, their boxes [x, y, width, height], and their colours."""
    pixels = random.integers(90, 150, (side, side, 3)).astype(np.uint8)
    boxes, names = [], []
    for _ in range(int(random.integers(0 if most > 1 else 1, most + 1))):
        width, height = (int(size) for size in random.integers(side // 4, side // 2, 2))
        x, y = int(random.integers(0, side - width)), int(random.integers(0, side - height))
        name = str(random.choice(sorted(COLORS)))
        pixels[y : y + height, x : x + width] = COLORS[name]
        boxes.append([x, y, width, height])
        names.append(name)
    return pixels, boxes, names


def folder_of_shapes(folder: Path, count: int, side: int = 48, most: int = 2, seed: int = 0) -> Path:
    """Write images with a `metadata.jsonl` as `datasets` has it, and return their folder."""
    random, lines = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels, boxes, names = picture(random, side, most)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        lines.append({"file_name": f"{number:03}.png", "objects": {"bbox": boxes, "category": names}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
