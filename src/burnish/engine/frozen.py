"""What a frozen model answers to each row, asked once before training and kept on disk.

A folder `frozen/KEY` in the cache holds parts as that of a frozen prefix does (`prefix_cache`): for each row a matrix in
float32. KEY names the frozen model's weights, what is asked and how it is computed; a row is found by what the model sees
of it, so other settings, or some more rows, ask again only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from burnish.config import Config
from burnish.data.reader import load_reader, read_alike
from burnish.data.store import Store
from burnish.engine import checkpoint
from burnish.engine.fit import Fit
from burnish.engine.prefix_cache import CacheUnusable, Filled, PrefixCache, Work, arithmetic, fill
from burnish.engine.step import arranged
from burnish.env import cache_dir, fingerprint
from burnish.errors import UserError
from burnish.models.adapter import adapt
from burnish.models.load import build, make_config
from burnish.models.precision import round_to_bf16
from burnish.models.quantise import scales
from burnish.models.source import model_folder
from burnish.task import Batch, FrozenModel, Task
from burnish.terminal import Terminal


def opened(asked: FrozenModel, task: Task, own: Callable[[], Any], device: str, config: Config) -> Any:
    """Return the frozen model in float32, on its device.

    Args:
        own: makes the run's own model as it is before the first step.

    Raises:
        UserError: it cannot be had, it lacks the task's head, or it reads other tokens than the run's model.
    """
    if asked.path is None:
        model = own().to(device)
        if config.adapter.kind == "qlora":  # the run's model begins with weights of 4 bits
            adapt(model, config.adapter, config.freeze)
        return model
    try:
        folder = model_folder(asked.path, None)
    except UserError as error:
        raise UserError(f"{asked.setting}: {error}") from error
    if not read_alike(type(task), load_reader(type(task), folder), task.tokenizer):
        raise UserError(
            f"{asked.setting}: {asked.path} has other tokens than the run's model, so the two do not read the same. Take one "
            "with the same tokenizer."
        )
    model, loaded = build(task.auto_class, make_config(folder, {}, None), folder)
    if loaded.new:
        raise UserError(
            f"{asked.setting}: {asked.path} has no trained layer for {task.name} ({len(loaded.new)} tensors would be new). "
            f"Train it first: burnish train {task.name} --model {asked.path} --data.train ..."
        )
    return model.to(device)


class Asked(Fit):
    """A frozen model, tried on the rows it will be asked about.

    Args:
        model: in float32, on its device.
        asked: what the task says of it.
    """

    def __init__(self, model: Any, asked: FrozenModel, task: Task, store: Store, device: str):
        task.check_frozen(model)
        model.eval().requires_grad_(False)
        self.asked = asked
        self.weights = checkpoint.digest([*model.named_parameters(), *model.named_buffers(), *scales(model)])
        """A digest of the model's weights."""
        super().__init__(model, task, store, device, asked.setting if asked.path else "model")
        self.refuse_misfit()

    def forward(self, batch: Batch) -> Any:
        """Return the sum of all that is kept of a batch."""
        return torch.stack([answer.sum() for answer in self.task.remember(self.model, batch)]).sum()

    def settle(self, packing: str, precision: str) -> str:
        """Arrange the model and return the arithmetic it computes in: the wanted one, or float32 where it cannot."""
        arrangement, _ = self.arrangement(packing, compiled=False)
        if precision == "bf16":
            precision = "fp32" if self.refuses_bf16() else "bf16"
        self.prepare(arrangement, precision)
        if self.stack is not None:
            self.stack.packed = arrangement == "packed"
        if precision == "bf16":
            round_to_bf16(self.model)
        self.precision = precision
        return precision

    def answer(self, batch: Batch) -> Sequence[Any]:
        """Return what is kept of the answer to each example of a batch: float32 [any number, width]."""
        with torch.inference_mode(), arranged(self.stack, batch):
            return self.task.remember(self.model, batch)

    def remember(self, stores: Mapping[str, Store], progress: Callable[[int], None]) -> dict[str, Filled]:
        """Ask about every example of some stores that is not answered yet, and let the stores give the answers.

        Raises:
            UserError: the answers cannot be kept.
        """
        answers = self.answer(self.together)
        lengths = np.array(self.together.lengths).reshape(len(answers), -1).sum(1)
        rate = max(len(one) / length for one, length in zip(answers, lengths, strict=True))
        work = Work(self.answer, lambda batch: rate * sum(batch.lengths or []), _seen)
        config = {name: value for name, value in self.model.config.to_dict().items() if name != "_name_or_path"}
        how = [
            self.task.name,
            self.task.version,
            dict(self.asked.options),
            answers[0].shape[-1],
            self.precision,
            bool(self.stack and self.stack.packed),
        ]
        key = fingerprint("frozen 1", self.weights, config, *how, *arithmetic(self.model))
        filled = {}
        try:
            cache = PrefixCache.open(cache_dir() / "frozen" / key, answers[0].shape[-1], torch.float32)
            for split, store in stores.items():
                found, filled[split] = fill(cache, work, self.task, store, range(len(store)), self.device, progress)
                store.remembered = lambda row, found=found: found([row]).numpy()
        except CacheUnusable as error:
            raise UserError(
                f"{self.asked.setting}: what the frozen model answers cannot be kept, since {error}. Set BURNISH_CACHE to "
                "a folder that can be written and has room."
            ) from error
        return filled


def ask(
    model: Any,
    asked: FrozenModel,
    task: Task,
    stores: Mapping[str, Store],
    device: str,
    wanted: tuple[str, str],
    before: Mapping[str, Any] | None,
    terminal: Terminal,
) -> dict[str, Any]:
    """Let a frozen model answer every row that it has not answered yet; return its digest and arithmetic, for the plan.

    Args:
        wanted: the setting `train.packing`, and the arithmetic of the run.
        before: what was returned when the run began.

    Raises:
        UserError: it cannot be asked, or is another one than when the run began.
    """
    frozen = Asked(model, asked, task, stores["train"], device)
    if before and before["weights"] != frozen.weights:
        raise UserError(
            f"{asked.setting}: the frozen model has changed since this run began. Put it back, or give another --run.dir."
        )
    packing, precision = wanted
    precision = frozen.settle(packing, (before or {}).get("precision", precision))
    chosen = stores if asked.scores else {"train": stores["train"]}
    with terminal.progress("frozen model", sum(map(len, chosen.values()))):
        filled = frozen.remember(chosen, terminal.advance)
    for split, one in filled.items():
        terminal.say(f"answers of the frozen model to {one.rows:,} {split} rows: {one.hits}")
    return {"weights": frozen.weights, "precision": precision}


def _seen(batch: Batch) -> dict[str, Any]:
    """Return what an answer follows from: all of a batch, but not an answer that is there already."""
    return {name: value for name, value in (batch.inputs | batch.targets).items() if name != "remembered"}
