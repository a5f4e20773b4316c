"""A running mean of the weights, which is often better than where they stand."""

from __future__ import annotations

from typing import Any

import torch


class Average(torch.optim.Optimizer):
    """Changes no parameter: keeps an exponential moving average of each, as the state of an optimizer.

    Early on it forgets faster, so that the first weights do not linger: the decay of step t is at most (1 + t) / (10 + t).

    Args:
        groups: parameter groups, as other optimizers get them.
        decay: share of the average that stays at each step.

    Source: Polyak and Juditsky 1992; the early decay as in TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, groups: list[dict[str, Any]], decay: float):
        super().__init__(groups, {"lr": 0.0})
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore  (of two ways to call it, the one that is used)
        """Bring the averages nearer to the parameters as they are now."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["steps"], state["average"] = torch.zeros(()), parameter.detach().clone()
                state["steps"] += 1
                steps = float(state["steps"])
                state["average"].lerp_(parameter, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    def averages(self) -> list[tuple[Any, Any]]:
        """Return each parameter that has an average, with it."""
        return [(parameter, state["average"]) for parameter, state in self.state.items() if state]
