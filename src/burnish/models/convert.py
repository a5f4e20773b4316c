"""Child process that reads `.bin` weights as tensors only and writes safetensors: `convert TARGET_FOLDER FILE ...`."""

from __future__ import annotations

import sys
from pathlib import Path


def convert(target: Path, files: list[Path]) -> None:
    """Write the tensors of pickled weight files to `target/model.safetensors`.

    `weights_only=True` is what keeps a hostile file from running anything: its unpickler builds tensors and plain
    containers, and raises on everything else.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for file in files:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        tensors.update({name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)})
    # Tied weights share memory, which safetensors does not express: each name gets its own copy.
    save_file(
        {name: value.clone().contiguous() for name, value in tensors.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
