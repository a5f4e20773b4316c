"""The load-balancing loss of mixtures of experts, row by row.

transformers' own couples all rows that are computed at once, so it depends on how a step is cut. Here it is computed for each
row by itself and its mean over the rows of a step is taken, which does not. For a single row both are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from burnish.ops import attention


def routers(model: Any) -> list[nn.Module]:
    """Return the modules that choose experts and train, if the model's config gives their loss a weight."""
    recorded = (getattr(model.base_model, "_can_record_outputs", None) or {}).get("router_logits")
    kind = getattr(recorded, "target_class", None)
    if kind is None or not coefficient(model.config) or getattr(recorded, "index", None) != 0:
        return []
    found = [module for module in model.modules() if isinstance(module, kind)]
    return [module for module in found if all(value.requires_grad for value in module.parameters())]


def coefficient(config: Any) -> float:
    """Return what the loss counts beside that of the tokens; 0 for a model without experts."""
    return float(getattr(config.get_text_config(), "router_aux_loss_coef", 0.0) or 0.0)


class Routed:
    """What the routers of a forward pass gave: logits [positions, experts], layer by layer."""

    def __init__(self, model: Any):
        self._model = model
        self._logits: list[torch.Tensor] = []

    @contextmanager
    def seen(self) -> Iterator[Routed]:
        """Keep the routers' logits of the forward pass that runs inside."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._logits.append(output[0])

        handles = [module.register_forward_hook(keep) for module in routers(self._model)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, lengths: Sequence[int]) -> torch.Tensor:
        """Return the sum of the rows' losses times the config's coefficient, a scalar in float32.

        A row's loss is `experts * sum over experts of (share of choices) * (mean probability)`, over all layers together;
        positions that only fill up have no part in it.

        Args:
            lengths: positions of each row.

        Source: Fedus et al. 2022, equations 4 to 6; over layers as transformers does.
        """
        text = self._model.config.get_text_config()
        experts, chosen, rows = self._logits[0].shape[-1], text.num_experts_per_tok, len(lengths)
        row_of, places = (found.to(self._logits[0].device) for found in _positions(lengths, len(self._logits[0])))
        counts = self._logits[0].new_zeros(rows, experts, dtype=torch.float32)
        sums = torch.zeros_like(counts)
        for logits in self._logits:
            shares = logits.index_select(0, places).float().softmax(-1)
            best = torch.zeros_like(shares).scatter_(1, shares.topk(chosen).indices, 1.0)
            counts = counts.index_add(0, row_of, best)
            sums = sums.index_add(0, row_of, shares)
        positions = torch.tensor(lengths, device=counts.device)[:, None] * len(self._logits)
        return coefficient(self._model.config) * experts * (counts / positions * (sums / positions)).sum()


def _positions(lengths: Sequence[int], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row of each real position, and where it lies: among rows end to end, or in the padded batch."""
    numbers = np.array(lengths)
    rows = np.repeat(np.arange(len(numbers)), numbers)
    if attention.is_end_to_end():
        return torch.from_numpy(rows), torch.arange(len(rows))
    within = np.arange(len(rows)) - (np.cumsum(numbers) - numbers)[rows]
    return torch.from_numpy(rows), torch.from_numpy(rows * (total // len(numbers)) + within)
