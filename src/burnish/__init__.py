"""burnish trains and fine-tunes transformers: exact, fast, whole.

>>> import burnish
>>> burnish.__version__
'0.1.0'
"""

from __future__ import annotations

import os
from typing import Any

# Threads that wait for each other spin before they sleep. libgomp's default spins so long that one other busy process
# makes a step twenty times slower; this costs 5 % on a quiet machine and keeps a busy one usable (docs/log.md). libgomp
# reads it once, when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["GuardError", "Run", "Stopped", "UserError", "__version__", "evaluate", "load", "train"]

_HOME = {
    "train": "burnish.api",
    "load": "burnish.api",
    "evaluate": "burnish.api",
    "Run": "burnish.api",
    "UserError": "burnish.errors",
    "GuardError": "burnish.errors",
    "Stopped": "burnish.errors",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
