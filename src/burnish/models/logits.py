"""From a language model's inputs to the losses of its targets, without the logits nobody scores.

The model runs as it is, but its output layer hands on what reaches it instead of multiplying. The product with the output
weights, for the scored positions only, and the cross-entropy are one operation (`burnish.ops.linear_cross_entropy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from burnish.ops.linear_cross_entropy import linear_cross_entropy, linear_token_losses

#: How far the losses of the two ways may lie apart, relative.
_TOLERANCE = 1e-4
_TOLERANCE_BF16 = 0.02


@dataclass(frozen=True)
class Scores:
    """What a model does to the product of hidden states and output weights.

    Args:
        scale: multiplies it (Cohere's `logit_scale`; one over Granite's `logits_scaling`).
        softcap: squeezes it to `softcap * tanh(logits / softcap)` (Gemma 2).
    """

    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of(config: Any) -> Scores:
        """Return what a config says."""
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return Scores(scale, getattr(config, "final_logit_softcapping", None))


def loss_sum(model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the sum of the targets' cross-entropies, a scalar in float32.

    Args:
        labels: the token at each target [targets].
        places: where each target is predicted, as an index into all positions of the batch, row by row [targets].
    """
    if whole_logits(model):
        return functional.cross_entropy(_whole(model, inputs, places), labels, reduction="sum")
    head, hidden, scores = _scored(model, inputs, places)
    return linear_cross_entropy(hidden, head.weight, labels, bias=head.bias, scale=scores.scale, softcap=scores.softcap)


def logits_at(model: Any, inputs: Mapping[str, Any], places: torch.Tensor) -> torch.Tensor:
    """Return the logits at some positions of the batch, row by row: float32 [targets, vocabulary]."""
    if whole_logits(model):
        return _whole(model, inputs, places)
    head, hidden, scores = _scored(model, inputs, places)
    logits = functional.linear(hidden, head.weight, head.bias).float() * scores.scale
    return logits if scores.softcap is None else scores.softcap * torch.tanh(logits / scores.softcap)


def losses(model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target in nats: float32 [targets].

    Where only their sum is differentiated, `loss_sum` makes the logits once instead of twice.
    """
    if whole_logits(model):
        return functional.cross_entropy(_whole(model, inputs, places), labels, reduction="none")
    head, hidden, scores = _scored(model, inputs, places)
    return linear_token_losses(hidden, head.weight, labels, bias=head.bias, scale=scores.scale, softcap=scores.softcap)


def whole_logits(model: Any) -> str | None:
    """Return why this model's logits have to be made whole, or None: what it does to them is known and was tried.

    Tried once a model, on two short rows.
    """
    if not hasattr(model, "_burnish_whole_logits"):
        model._burnish_whole_logits = _tried(model)
    return model._burnish_whole_logits


@torch.no_grad()
def _tried(model: Any) -> str | None:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return f"{type(model).__name__} has no single linear layer that makes its logits"
    device = head.weight.device
    ids = torch.arange(3, 11, device=device).view(2, 4) % head.out_features
    inputs: dict[str, Any] = {"input_ids": ids} | (
        {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    )
    if model.main_input_name != "input_ids":  # what it hears stays out of this
        from transformers.modeling_outputs import BaseModelOutput

        heard = torch.linspace(-1, 1, 16 * model.config.hidden_size, device=device, dtype=head.weight.dtype)
        encoded: Any = BaseModelOutput(last_hidden_state=heard.view(2, 8, -1))
        encoded.attention_mask = None  # Moonshine asks for it
        inputs = {"encoder_outputs": encoded, "decoder_input_ids": ids}
    given = inputs, torch.tensor([1, 2, 0], device=device), torch.tensor([1, 2, 7], device=device)
    ways, training = [], model.training
    model.eval()
    try:
        for reason in ("to compare", None):
            model._burnish_whole_logits = reason
            ways.append(losses(model, *given))
    except (RuntimeError, IndexError):
        return f"{type(model).__name__} does something of its own to its logits"
    finally:
        model.train(training)
        del model._burnish_whole_logits
    apart = float((ways[1] - ways[0]).norm() / ways[0].norm())
    tolerance = _TOLERANCE if head.weight.dtype == torch.float32 else _TOLERANCE_BF16
    return None if apart <= tolerance else f"{type(model).__name__} does more to its logits than is known"


def _whole(model: Any, inputs: Mapping[str, Any], places: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, places).float()


def _scored(model: Any, inputs: Mapping[str, Any], places: torch.Tensor) -> tuple[Any, torch.Tensor, Scores]:
    """Return the output layer, what reaches it at the targets [targets, width], and what is done to its product."""
    head = model.get_output_embeddings()
    reached: list[torch.Tensor] = []

    def hand_on(hidden: torch.Tensor) -> torch.Tensor:
        reached.append(hidden)
        return hidden[..., :0].clone()  # whatever the model does to its logits costs nothing; FSDP2 wants no view

    head.forward = hand_on
    try:
        model(**inputs, use_cache=False)
    finally:
        del head.forward
    return head, reached[-1].flatten(0, 1).index_select(0, places), Scores.of(model.config.get_text_config())
