"""Architectures that transformers lacks, made known to its Auto classes: `import burnish.models.own` does it.

A file here is one architecture: `CONFIG` is its config's class, `HEADS` the model of each Auto class it has.
"""

from __future__ import annotations

import importlib
import pkgutil

import transformers

HEADS: dict[str, list[str]] = {}
"""Auto class to the names of the architectures here that it opens."""


def _register() -> None:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        transformers.AutoConfig.register(module.CONFIG.model_type, module.CONFIG)
        for auto_class, model in module.HEADS.items():
            getattr(transformers, auto_class).register(module.CONFIG, model)
            HEADS.setdefault(auto_class, []).append(model.__name__)


_register()
