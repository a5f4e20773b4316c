"""The machine: what it is, what it can do, and what the environment of a run looked like."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("burnish", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "pyarrow")


@functools.cache
def versions() -> dict[str, str]:
    """Return the installed version of Python and of every package a result can depend on; read once."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return what can be said of the machine without importing torch: system, processor, cores, memory in bytes."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: str, threads: int) -> dict[str, Any]:
    """Return the environment a run records: versions, machine, device, threads and the command."""
    return {
        "versions": versions(),
        "machine": machine(),
        "device": device,
        "threads": threads,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def load_torch() -> None:
    """Import torch and what every model of transformers needs, out of sight of Python's collector.

    A fifth of these seconds would go into collections that walk a million new objects and free none.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
        _list_models_once()
        importlib.import_module("transformers.modeling_utils")
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _list_models_once() -> None:
    """Import `transformers.models` with the list of what its modules export that `transformers` itself has made already.

    It would read its thousands of files again for the same list (docs/log.md). A transformers that is made otherwise is
    imported as it comes.
    """
    transformers = importlib.import_module("transformers")
    made_by: Any = importlib.import_module("transformers.utils.import_utils")
    original: Any = getattr(made_by, "define_import_structure", None)
    folder = Path(transformers.__path__[0], "models")
    if not hasattr(original, "cache_info") or not original.cache_info().currsize:
        return

    def known(path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != folder / "__init__.py":
            return original(path, prefix)
        listed = original(folder, prefix="models")
        start = len("models.")
        return {
            needs: {name[start:]: exported for name, exported in modules.items() if name.startswith("models.")}
            for needs, modules in listed.items()
        }

    made_by.define_import_structure = known
    try:
        importlib.import_module("transformers.models")
    finally:
        made_by.define_import_structure = original


def cache_dir() -> Path:
    """Return the folder for tokenised rows and converted weights: `$BURNISH_CACHE` or `~/.cache/burnish`."""
    return Path(os.environ.get("BURNISH_CACHE") or Path.home() / ".cache" / "burnish")


def free_disk_bytes(path: Path) -> int:
    """Return the free space of the file system that holds `path` (or will)."""
    while not os.path.exists(path):
        path = path.parent
    return shutil.disk_usage(path).free


def free_memory_bytes() -> int:
    """Return the memory that can be had without swapping, within the limit of a container if there is one."""
    available = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return available if limit == "max" else min(available, max(0, int(limit) - used))
    except (OSError, ValueError):
        return available


def fingerprint(*parts: Any) -> str:
    """Return a short stable name for JSON-able values: the start of the sha256 of their canonical form."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def has_fast_bf16(device: str) -> bool:
    """Return whether bfloat16 matrix products are faster than float32 ones on `device`.

    On processors that means AVX512-BF16 or AMX; without them bf16 is emulated and slower. On GPUs, Ampere and newer.
    """
    import torch

    if device == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return device.startswith("cuda") and torch.cuda.get_device_capability()[0] >= 8


#: Dense bfloat16 operations a second as the makers publish them, by the start of the GPU's name.
PEAK_FLOPS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA GH200": 989e12, "NVIDIA A100": 312e12}


def peak_flops(device: str, precision: str) -> float | None:
    """Return the operations a second the device does at best: published for known GPUs, measured on a processor.

    The measurement is the best of a few products of 512 x 512 matrices with the threads in use; None: not known.
    """
    import torch

    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
        return next((peak for start, peak in PEAK_FLOPS.items() if name.startswith(start)), None)
    if device != "cpu":
        return None
    size = 512
    left = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def keep_freed_memory() -> None:
    """Let glibc hand freed blocks out again instead of returning them to the system.

    Every step asks for the same large blocks, and each new page of a fresh one costs the system a fault: a step of a small
    GPT-2 takes a tenth less processor time this way (docs/log.md). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        trim_threshold, largest_count_mapped = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        library.mallopt(largest_count_mapped, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
