"""What the tasks have in common that learn from pairs of answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from burnish.config import DataSettings
from burnish.data.pairs import pair_columns
from burnish.task import Batch, Records, Task

if TYPE_CHECKING:
    import torch


class PairTask(Task):
    """A task that gives each answer of a pair a reward, of which the better answer's should be the larger."""

    opens_by_default = False
    metric_names = ("accuracy", "margin", "loss")
    lower_is_better = frozenset({"loss"})

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return pair_columns(data)

    def cuts_long_rows(self) -> bool:
        return True

    @abstractmethod
    def rewards(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each pair's two rewards [pairs, 2], and its loss [pairs]."""

    def score(self, model: Any, batch: Batch) -> Records:
        rewards, losses = self.rewards(model, batch)
        return {"rewards": rewards.cpu().numpy(), "loss": losses.cpu().numpy()}

    def metrics(self, records: Records) -> dict[str, float]:
        """Share of pairs whose better answer has the larger reward, mean difference of the rewards, mean loss."""
        margins = records["rewards"][:, 0] - records["rewards"][:, 1]
        return {
            "accuracy": float((margins > 0).mean()),
            "margin": float(margins.mean()),
            "loss": float(records["loss"].mean()),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        """Return a table of the mean rewards."""
        chosen, rejected = records["rewards"].mean(0).tolist()
        rows = [["chosen", chosen], ["rejected", rejected]]
        return [{"kind": "table", "title": "Rewards", "columns": ["answer", "mean reward"], "rows": rows}]
