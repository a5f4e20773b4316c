"""How fast a run is: what each step's line says of it, summed up."""

from __future__ import annotations

import math
import resource
import sys
from typing import Any


def speed(lines: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return how fast a run was, from the lines of its steps; the first ones, which warm up, are left out if there are more.

    `positions_per_second` does not count padding; `padding`, `waited` (for rows) and `mfu` are shares.
    """
    steps = [line for line in lines if line.get("seconds")]
    steps = steps[5:] or steps
    seconds = sum(line["seconds"] for line in steps) or math.inf
    positions = sum(line["positions"] for line in steps)
    computed = sum(line["positions"] / max(1e-4, 1 - line["padding"]) for line in steps if line["positions"])
    known = [line["mfu"] * line["seconds"] for line in steps if line["mfu"] is not None]
    return {
        "positions_per_second": round(positions / seconds, 1),
        "padding": round(1 - positions / computed, 4) if computed else 0.0,
        "waited": round(sum(line["waited_seconds"] for line in steps) / seconds, 4),
        "mfu": round(sum(known) / seconds, 4) if known else None,
        "peak_memory_bytes": max((line["peak_memory_bytes"] for line in steps), default=0),
    }


def peak_memory_bytes(device: str) -> int:
    """Return the most memory this process held at once: on the GPU if it computes there, else altogether."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def finite(value: Any) -> float | None:
    """Return the number, or None (JSON's null) if it is none; the line then carries `non_finite`."""
    number = float(value)
    return number if math.isfinite(number) else None
