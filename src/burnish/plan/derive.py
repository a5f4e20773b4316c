"""Deriving what the user left open: each value comes with its reason, is printed, stored, and reused on resume."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from burnish.config import Config
from burnish.env import free_disk_bytes, free_memory_bytes, has_fast_bf16
from burnish.errors import UserError
from burnish.models.load import dropout_of, longest_sequence, parameter_count, trainable_count
from burnish.run import RunFolder
from burnish.units import Duration, readable_bytes

#: Share of the time that evaluations on the way may take, and the fewest rows that still say something.
MOST_EVALUATING = 0.1
FEWEST_EVALUATED = 200

#: State per trained parameter by optimizer, in float32 numbers.
_STATE_NUMBERS = {"adamw": 2, "adam": 2, "sgd": 1, "adafactor": 0, "muon": 2}


@dataclass
class Plan:
    """What was derived at the first start of a run. `why` gives the reason for each value that was not the user's."""

    device: str
    threads: int
    precision: str
    sequence: int
    micro_batch: int
    lr: float
    total_rows: int
    total_steps: int
    warmup_steps: int
    evaluate_every: int
    evaluate_rows: int
    best: str
    memory: dict[str, int]
    model: dict[str, Any]
    data: dict[str, Any]
    facts: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as RUN/plan.json holds it."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        """Return a stored plan.

        Raises:
            UserError: another version of burnish wrote it, with other fields.
        """
        try:
            return Plan(**values)
        except TypeError as error:
            raise UserError(
                "plan.json: another version of burnish began this run, so it cannot be continued; its model/ stays usable. "
                "Give another --run.dir."
            ) from error


def choose_device(config: Config) -> tuple[str, str]:
    """Return the device and why.

    Raises:
        UserError: the asked device is not on this machine.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if config.run.device == "auto":
        if accelerator is None:
            return "cpu", "no accelerator on this machine"
        return accelerator.type, "the machine has one"
    kind = config.run.device.split(":")[0]
    if kind != "cpu" and (accelerator is None or accelerator.type != kind):
        there = f"cpu and {accelerator.type}" if accelerator else "cpu only"
        raise UserError(f"run.device: {config.run.device!r} is not on this machine ({there}).")
    return config.run.device, ""


def choose_precision(config: Config, device: str) -> tuple[str, str]:
    """Return bf16 or fp32, and why."""
    if config.train.precision != "auto":
        return config.train.precision, ""
    if has_fast_bf16(device):
        return "bf16", f"this {device} multiplies bfloat16 faster; weights and optimizer stay float32"
    return "fp32", f"bfloat16 would be emulated and slower on this {device}"


def choose_sequence(config: Config, model_config: Any) -> tuple[int, str]:
    """Return the longest sequence in tokens, and why.

    Raises:
        UserError: longer than the model's positions.
    """
    limit = longest_sequence(model_config)
    if config.train.sequence is not None:
        if limit is not None and config.train.sequence > limit:
            raise UserError(
                f"train.sequence: {config.train.sequence} is longer than the model, which has {limit} positions. "
                f"Give at most {limit}."
            )
        return config.train.sequence, ""
    if config.model.path is None:
        return limit or 1024, "the preset's positions"
    return min(limit or 512, 512), "the model's positions, at most 512"


def choose_lr(config: Config, model: Any) -> tuple[float, str]:
    """Return the peak learning rate, and why."""
    if config.optim.lr is not None:
        return config.optim.lr, ""
    if config.model.path is None:
        rate = 0.003239 - 0.0001395 * math.log(parameter_count(model))
        return float(f"{max(rate, 1e-4):.2g}"), "from scratch: 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, eq. D.1)"
    if trainable_count(model) < 0.02 * parameter_count(model):
        return 1e-3, "only the head trains"
    return 5e-5, "fine-tuning (Devlin et al. 2019, appendix A.3)"


def choose_micro_batch(config: Config, model_config: Any, device: str, longest: int, states: int) -> tuple[int, str]:
    """Return how many rows are computed at once, and why: as many as half of the free memory takes.

    Args:
        longest: positions of the longest row.
        states: bytes of parameters, gradients and optimizer state.
    """
    if config.train.micro_batch is not None:
        return min(config.train.micro_batch, config.train.batch), ""
    text = model_config.get_text_config()
    per_row = longest * (text.num_hidden_layers * text.hidden_size * 34 * 4 + text.vocab_size * 12)
    free = _free_memory(device) - states
    rows = max(1, int(free * 0.5 / per_row))
    if rows >= config.train.batch:
        return config.train.batch, "the whole batch fits in memory"
    return rows, f"about {readable_bytes(per_row)} of activations a row"


def _free_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0]
    return free_memory_bytes()


def memory_of(config: Config, model: Any) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimizer state."""
    parameters, trained = parameter_count(model), trainable_count(model)
    return {
        "parameters": 4 * parameters,
        "gradients": 4 * trained,
        "optimizer": 4 * trained * _STATE_NUMBERS.get(config.optim.name, 2),
    }


def refuse_what_cannot_fit(config: Config, folder: RunFolder, device: str, memory: dict[str, int]) -> None:
    """Check memory and disk before anything is written.

    Raises:
        UserError: naming what is needed and what there is.
    """
    needed, free = sum(memory.values()), _free_memory(device)
    if needed > free:
        raise UserError(
            f"model: parameters, gradients and optimizer need {readable_bytes(needed)} of memory, {readable_bytes(free)} "
            "are free. Take a smaller model, freeze layers, or another --optim.name."
        )
    one = memory["parameters"] + memory["optimizer"]
    disk = int(1.1 * (one * (config.checkpoint.keep + 2) + memory["parameters"]))
    free = free_disk_bytes(folder.path)
    if disk > free:
        raise UserError(
            f"{folder}: checkpoints need {readable_bytes(disk)} of disk ({config.checkpoint.keep} kept at "
            f"{readable_bytes(one)} each, one being written, one best, and the model); {readable_bytes(free)} are free. "
            "Give another --run.dir or a smaller --checkpoint.keep."
        )


def choose_length(config: Config, rows: int, tokens_per_row: float) -> tuple[int, int, int, int, dict[str, str]]:
    """Return rows and steps of the run, steps of warm-up and between evaluations, and the reasons.

    Raises:
        UserError: a duration in a unit that makes no sense there.
    """
    batch, why = config.train.batch, {}

    def within(setting: str, text: str, total: int) -> int:
        try:
            return Duration.parse(text).steps(
                total_steps=total, rows_per_epoch=rows, batch=batch, tokens_per_row=tokens_per_row
            )
        except ValueError as error:
            raise UserError(f"{setting}: {error}.") from error

    try:
        total_rows = Duration.parse(config.train.length).rows(
            rows_per_epoch=rows, batch=batch, tokens_per_row=tokens_per_row
        )
    except ValueError as error:
        raise UserError(f"train.length: {error}.") from error
    total = math.ceil(total_rows / batch)
    why["total_steps"] = f"{config.train.length} at {batch} rows a step"
    warmup = within("schedule.warmup", config.schedule.warmup, total)
    if config.train.evaluate_every is not None:
        every = max(1, within("train.evaluate_every", config.train.evaluate_every, total))
    else:
        every = max(1, min(math.ceil(total / 10), math.ceil(rows / batch)))
        why["evaluate_every"] = "an epoch or a tenth of the run"
    return total_rows, total, warmup, every, why


def choose_evaluate_rows(
    config: Config, train: np.ndarray, validation: np.ndarray | None, plan_rows: int, evaluations: int
) -> tuple[int, str]:
    """Return how many validation rows are scored on the way, and why. The end of a run always scores all.

    Args:
        train: positions of each training example.
        validation: positions of each validation example.
        plan_rows: rows of the run.
        evaluations: how often is evaluated.
    """
    if validation is None:
        return 0, ""
    if config.train.best is not None or config.train.patience is not None:
        return len(validation), "all, because they decide which checkpoint is best"
    # Scoring costs about a third of training on as many positions.
    budget = MOST_EVALUATING * 3 * plan_rows * float(train.mean()) / (evaluations * float(validation.mean()))
    rows = min(len(validation), max(FEWEST_EVALUATED, int(budget)))
    return rows, "all" if rows == len(validation) else "so that evaluating takes a tenth of the time; all at the end"


def limits_of_exactness(model_config: Any) -> str:
    """Return what a person must know of how exactly this model can be trained."""
    dropout = dropout_of(model_config)
    if dropout == 0:
        return "exact: no dropout, so the result does not depend on the micro-batch (within float rounding)"
    return (
        f"dropout {dropout:g} of the model: a resumed run is bit-equal, but another --train.micro-batch draws other masks "
        "(--train.dropout 0 avoids it)"
    )
