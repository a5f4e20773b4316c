"""Trying a built model on a few of its own rows, to see how the engine may compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from burnish.data.loader import collate
from burnish.data.store import Store
from burnish.errors import UserError
from burnish.models.backbone import backbone_of
from burnish.models.precision import round_to_bf16
from burnish.models.stack import Stack
from burnish.models.vision import settle
from burnish.ops import attention
from burnish.ops.batch_norm import GroupBatchNorm, HeldBatchNorm
from burnish.task import Batch, Task

#: Training rows by which the batch norms of a model from scratch are set.
SETTLED_ROWS = 16


def settled(
    model: Any, norms: Sequence[HeldBatchNorm], task: Task, fresh: Store | None, device: str, over_backbone: bool
) -> str:
    """Set the statistics by which the batch norms of a new model scale, and return in words whose they are.

    Args:
        norms: of the model; where `train.norm_rows` is set, those that train take the statistics of groups of rows.
        fresh: the training rows, of a model from scratch; None: it came with statistics, which stay.
        over_backbone: whether a pretrained backbone is in it, whose statistics stay.

    Raises:
        UserError: `train.norm_rows` is set, and no norm trains.
    """
    groups = [norm for norm in norms if isinstance(norm, GroupBatchNorm) and norm.weight.requires_grad]
    if not groups and (not norms or isinstance(norms[0], GroupBatchNorm)):
        raise UserError("train.norm_rows: no batch norm of this model trains. Leave it out.")
    whose = "it came with"
    if fresh is not None:
        rows = range(min(SETTLED_ROWS, len(fresh)))
        images = collate(fresh, task, rows).to(device).inputs["pixel_values"]
        settle(model, images, apart=backbone_of(model) if over_backbone else None)
        whose = f"of the first {len(rows)} training rows"
    if groups:
        rows = groups[0].rows
        return f"batch norm: {len(groups)} of {len(norms)} norms scale by each {rows} rows of a step, fixed by train.norm_rows"
    return f"batch norm: scales by the statistics {whose}, so no row depends on the others"


class Fit:
    """A model tried on the shortest, a middling and the longest row of its training data.

    Args:
        model: in float32, on its device, frozen where it is to be.
        setting: what names the model.
    """

    def __init__(self, model: Any, task: Task, store: Store, device: str, setting: str = "model"):
        self.model, self.task, self.device, self.setting = model, task, device, setting
        order = store.lengths().argsort(kind="stable")
        rows = list(dict.fromkeys(int(order[place]) for place in (0, len(order) // 2, -1)))
        self.together = collate(store, task, rows).to(device)
        self.alone = [collate(store, task, [row]).to(device) for row in rows]
        self.frozen = not all(value.requires_grad for value in model.parameters())
        self.stack: Stack | None = None
        try:
            self.stack = Stack(model)
        except UserError as error:
            self.no_stack = str(error).partition(": ")[2]

    def forward(self, batch: Batch) -> Any:
        """Return the summed loss of a batch."""
        return torch.stack(list(self.task.loss(self.model, batch).values())).sum()

    def refuse_misfit(self) -> None:
        """Compute one row.

        Raises:
            UserError: the model cannot do the task, although it has the head.
        """
        try:
            with torch.no_grad():
                self.forward(self.alone[0])
        except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            problem = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.setting}: {type(self.model).__name__} cannot compute {self.task.name} ({problem}). Take another model."
            ) from error

    def arrangement(self, wish: str, compiled: bool) -> tuple[str, str]:
        """Return packed or padded, and why; let the stack find what is read of it.

        Args:
            wish: "auto", or "off" for padded.
            compiled: the layers will be; the last one is then computed for all positions.
        """
        if wish == "off":
            return "padded", "rows of like length together; train.packing is off"
        training = self.model.training
        self.model.eval()
        refusal = self.stack.refusal(self.forward, self.together, self.alone) if self.stack else self.no_stack
        reads = self.stack.find_read(self.forward, self.together) if self.stack and not (refusal or compiled) else None
        self.model.train(training)
        if refusal:
            return "padded", f"rows of like length together; end to end this model does not take them: {refusal}"
        only = f"; the last layer computes each row's {reads} position only, all that is read" if reads else ""
        return "packed", f"end to end without padding; tried: each row comes out as it does alone{only}"

    def prepare(self, arrangement: str, precision: str) -> None:
        """Let padded rows of a bf16 run on a processor attend by a kernel whose backward pass is not slow."""
        slow = (arrangement, precision, self.device) == ("padded", "bf16", "cpu")
        if slow and self.model.config._attn_implementation == "sdpa":
            attention.register()
            self.model.set_attn_implementation(attention.PADDED)

    def refuses_bf16(self) -> str | None:
        """Return why the model does not compute with weights in bfloat16; None: it does."""
        exact = round_to_bf16(self.model)
        try:
            with torch.no_grad():
                loss = self.forward(self.alone[0])
            return None if torch.isfinite(loss) else "the loss came out as no finite number"
        except RuntimeError as error:
            return " ".join(str(error).split())[:160]
        finally:
            for name, parameter in self.model.named_parameters():
                if name in exact:
                    parameter.data = exact[name]

    def prefix_refusal(self, views: int = 0) -> str | None:
        """Let the stack find its frozen layers; return why they have to be computed in every step although frozen.

        Args:
            views: the setting `freeze.views`.
        """
        if not self.frozen:
            return None
        if self.stack is None:
            return self.no_stack
        if self.task.takes_next:
            return "rows are blended with others, which are not the same in each epoch"
        if self.task.varies and not views:
            return "the rows change from epoch to epoch" + (
                "; --freeze.views keeps some" if self.task.reads != "text" else ""
            )
        if not self.stack.packed:
            found = self.together.lengths and self.stack.finds_part(self.forward, self.together)
            inside = backbone_of(self.model) is not None
            more = ", and the backbone is not frozen as a whole, or gives several maps" if inside else ""
            return None if found else f"rows are padded{more}"
        return self.stack.find_prefix(self.forward, self.together) or (
            None if self.stack.depth else "the lowest layer trains"
        )
