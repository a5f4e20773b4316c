"""The arithmetic a model computes in, and the float32 weights behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from burnish.models.backbone import backbone_of
from burnish.ops.batch_norm import GroupBatchNorm


def round_to_bf16(model: Any) -> dict[str, torch.Tensor]:
    """Let a float32 model compute in bfloat16; return its exact float32 parameters by name, those it rounded.

    Buffers stay as they are (rotary frequencies must not be rounded), and so do parameters which the architecture itself
    wants in float32, and those of batch norms, whose kernels want them of one kind with the statistics. Of a detector only
    the backbone is rounded: a place in an image takes more digits than bfloat16 has (docs/log.md).
    """
    inner = backbone_of(model)
    if inner is not None and not hasattr(inner, "leaves_float32"):
        inner.leaves_float32 = inner.register_forward_hook(_to_float32)
    rounded = {id(value) for value in (model if inner is None else inner).parameters()}
    norms = [name for name, module in model.named_modules() if hasattr(module, "running_mean")]
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    wanted = [*(getattr(model, "_keep_in_fp32_modules", None) or ()), *strict]
    exact = {}
    for name, parameter in model.named_parameters():
        kept = any(part in name.split(".") for part in wanted) or name.rpartition(".")[0] in norms
        if parameter.dtype == torch.float32 and not kept and id(parameter) in rounded:
            exact[name] = parameter.data
            parameter.data = parameter.data.to(torch.bfloat16)
    return exact


def _to_float32(module: Any, args: Any, output: Any) -> Any:
    output.feature_maps = tuple(maps.float() for maps in output.feature_maps)
    return output


class Weights:
    """A model's weights as they are trained and saved, and the copy the model computes with.

    In float32 both are the same. In bfloat16 the model holds rounded copies; the float32 weights they come from are kept
    here, gradients are added up in float32, and `publish` rounds the weights again after each update.

    Args:
        model: in float32, frozen where it is to be.
        precision: "bf16" or "fp32".
    """

    def __init__(self, model: Any, precision: str):
        self.model = model
        self._norms = [module for module in model.modules() if isinstance(module, GroupBatchNorm)]
        exact = round_to_bf16(model) if precision == "bf16" else {}
        self.exact: dict[str, nn.Parameter] = {}
        """Every parameter by name in float32; gradients of those that train are in their `grad` after a backward pass."""
        self._rounded: list[nn.Parameter] = []
        self._behind: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            self.exact[name] = parameter
            if name in exact:
                behind = nn.Parameter(exact[name], requires_grad=parameter.requires_grad)
                self.exact[name] = behind
                self._rounded.append(parameter)
                self._behind.append(behind)
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_handing_to(behind))

    def trained(self) -> list[nn.Parameter]:
        """Return the float32 weights that train."""
        return [value for value in self.exact.values() if value.requires_grad]

    def forget_gradients(self) -> None:
        """Start the next step's gradient from nothing."""
        for value in self.exact.values():
            value.grad = None
        for norm in self._norms:
            norm.forget()

    def learn_statistics(self) -> None:
        """Let batch norms of groups of rows learn from the step's groups what they scale by in evaluations."""
        for norm in self._norms:
            norm.learn()

    @torch.no_grad()
    def publish(self, *, everything: bool = False) -> None:
        """Give the model the weights as they are now.

        Args:
            everything: frozen ones too, as after loading a checkpoint.
        """
        pairs = zip(self._rounded, self._behind, strict=True)
        chosen = [pair for pair in pairs if everything or pair[1].requires_grad]
        if chosen:
            torch._foreach_copy_([rounded for rounded, _ in chosen], [behind for _, behind in chosen])

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Let the model hold the exact weights while the block runs, to export it or to compare it."""
        rounded = [parameter.data for parameter in self._rounded]
        for parameter, behind in zip(self._rounded, self._behind, strict=True):
            parameter.data = behind.data
        try:
            yield
        finally:
            for parameter, data in zip(self._rounded, rounded, strict=True):
                parameter.data = data


def _handing_to(behind: nn.Parameter) -> Any:
    collected = torch.empty_like(behind)  # one buffer for the whole run: fresh memory costs more than the sum in it

    def hand_over(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None  # the hook runs after it was accumulated
        if behind.grad is None:
            behind.grad = collected.copy_(gradient)
        else:
            behind.grad += gradient
        parameter.grad = None

    return hand_over
