"""What lies below a model's head."""

from __future__ import annotations

from typing import Any


def body_of(model: Any) -> Any:
    """Return all of a model but its head: its base model, or the encoder beside the head; itself where it has no head."""
    if model.base_model is not model or hasattr(model, "decoder"):
        return model.base_model
    return getattr(model, "encoder", model)
