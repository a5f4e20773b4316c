"""Frozen linear layers kept in 4 bits (bitsandbytes): what they weigh, compute and hold.

Source: Dettmers et al. 2023 (QLoRA), section 3: NormalFloat of 4 bits in blocks of 64, whose scales are quantised again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from burnish.errors import UserError

#: Bytes of a weight: half, and its share of a block's scale (8 bits in 64) and of the scales' scale (32 bits in 256 of them).
BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def hush() -> None:
    """Keep away what bitsandbytes tells of kernels that no run needs; peft imports it wherever it is installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@cache
def _library() -> Any:
    """Return bitsandbytes, which takes a second to import.

    Raises:
        UserError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            'adapter.kind: qlora needs the package bitsandbytes: pip install "burnish[adapters]".'
        ) from error
    return bitsandbytes


@cache
def _layer_class() -> type[Any]:
    library = _library()

    class Linear4bit(library.nn.Linear4bit):
        """Computes in the type of what comes in; the library's own changes weights and biases in place on the way."""

        def forward(self, x: Any) -> Any:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return library.matmul_4bit(x, self.weight, bias=bias, quant_state=self.weight.quant_state)

    return Linear4bit


def quantise(model: Any, names: Iterable[str]) -> None:
    """Put layers of 4 bits, which never train, in the place of linear layers.

    Raises:
        UserError: bitsandbytes is not installed, or a layer is of a kind that it does not have.
    """
    from torch import nn

    library, made = _library(), _layer_class()
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise UserError(
                f"adapter.kind: {name} is a {type(layer).__name__}, which has no form of 4 bits; take lora."
            )
        if layer.weight.is_meta:  # only counted
            continue
        small = made(
            layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4", device="meta"
        )
        small.weight = library.nn.Params4bit(
            layer.weight.data.contiguous(), quant_type="nf4", compress_statistics=True, module=small
        )
        small.bias = layer.bias
        model.set_submodule(name, small.to(layer.weight.device).requires_grad_(False))  # moving it is what quantises


def quantised(model: Any) -> list[tuple[str, Any]]:
    """Return the layers of 4 bits with their names."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module._parameters.get("weight"), "quant_state", None) is not None
    ]


def dense(layer: Any) -> Any:
    """Return the weights of a layer of 4 bits in float32."""
    return _library().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def scales(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what layers of 4 bits hold beside their parameters and buffers, by name."""
    for name, layer in quantised(model):
        for part, value in layer.weight.quant_state.as_dict(packed=True).items():
            yield f"{name}.weight.{part}", value
