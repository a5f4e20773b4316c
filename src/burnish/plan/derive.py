"""Deriving what the user left open: each value comes with its reason, is printed, stored, and reused on resume."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from burnish.config import Config
from burnish.env import free_disk_bytes, free_memory_bytes, has_fast_bf16
from burnish.errors import UserError
from burnish.models.adapter import quantised_count
from burnish.models.load import dropout_of, longest_sequence, parameter_count, skeleton, trainable_count
from burnish.models.quantise import BYTES
from burnish.models.router import coefficient as router_coefficient
from burnish.models.vision import Sight
from burnish.optim.optimizers import ELEMENTWISE
from burnish.run import RunFolder
from burnish.task import Task
from burnish.units import Duration, readable_bytes, readable_seconds

#: Share of the time that evaluations on the way may take, and the fewest rows that still say something.
MOST_EVALUATING = 0.1
FEWEST_EVALUATED = 200

#: How often the same text is nearly as good as new one (Muennighoff et al. 2023, section 6).
MOST_PASSES = 4

#: Fewer positions computed at once than this leave the processor waiting; activations are then rather recomputed.
FEWEST_POSITIONS = 1024

#: By device: operations a second to expect of it, seconds that compiling takes, and how much faster a step is after it
#: (docs/log.md; the GPU's are estimates).
COMPILES = {"cpu": (100e9, 60.0, 1.05), "cuda": (200e12, 60.0, 1.3)}

#: Memory of a process with torch and transformers, before any model.
RANK_BYTES = 600 * 2**20

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
    arrangement: str
    """packed: rows lie end to end; padded: rows of like length are filled up to the longest."""
    recompute: str
    compile: bool
    memory: dict[str, int]
    model: dict[str, Any]
    data: dict[str, Any]
    facts: dict[str, Any]
    reads: str | None = None
    """The one position of each row that the model's head reads, "first" or "last": the last layer computes no other."""
    frozen: dict[str, str] | None = None
    """Weights and arithmetic of the frozen model that the task asks, if it does."""
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
    if config.train.precision == "bf16" and not has_fast_bf16(device):
        return "bf16", f"as asked; this {device} emulates bfloat16, so it is slower than fp32"
    if config.train.precision != "auto":
        return config.train.precision, ""
    if has_fast_bf16(device):
        return "bf16", f"this {device} multiplies bfloat16 faster; the weights behind and the optimizer stay float32"
    return "fp32", f"bfloat16 would be emulated and slower on this {device}"


def choose_sequence(config: Config, task: Task, model_config: Any) -> tuple[int, str]:
    """Return the longest sequence in tokens, or the positions that the largest image or sound has, and why.

    Raises:
        UserError: longer than the model's positions, or mostly filled by virtual tokens.
    """
    if task.reads != "text":
        if config.train.sequence is not None:
            what = "sounds" if task.reads == "audio" else "images"
            remedy = "--task.seconds" if task.reads == "audio" else "--model.image-size"
            raise UserError(f"train.sequence: {what} have as many positions as their size gives; use {remedy}.")
        sight = task.sight(skeleton(task.auto_class, model_config))
        return sight.positions, sight.of
    sequence, why = _sequence(config, model_config)
    if config.adapter.kind == "prompt" and 2 * config.adapter.tokens + 4 > sequence:  # half, beside special tokens
        raise UserError(
            f"adapter.tokens: {config.adapter.tokens} virtual tokens fill more than half of a sequence of {sequence}. Give at "
            f"most {max(1, sequence // 2 - 2)}, or a larger --train.sequence."
        )
    return sequence, why


def _sequence(config: Config, model_config: Any) -> tuple[int, str]:
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
    if config.adapter.kind == "prompt":
        return 1e-2, "virtual tokens alone train, and have far to go"
    if config.adapter.kind != "none":
        return 5e-4, "adapters start from nothing, so they take about ten times the rate of fine-tuning"
    if trainable_count(model) < 0.02 * parameter_count(model):
        return 1e-3, "only the head trains"
    return 5e-5, "fine-tuning (Devlin et al. 2019, appendix A.3)"


def choose_micro_batch(
    config: Config, device: str, numbers: Mapping[str, float], longest: int, states: int
) -> tuple[int, str, dict[str, str]]:
    """Return how many rows are computed at once, which activations are computed again, and why.

    As many rows as half of the free memory takes; activations are recomputed only if too few rows would fit otherwise.

    Args:
        numbers: bytes of activations of the longest row, by what is computed again.
        longest: positions of the longest row.
        states: bytes of parameters, gradients and optimizer state.

    Raises:
        UserError: batch or micro-batch are no multiple of `train.norm_rows`.
    """
    budget = 0.5 * (_free_memory(device) - states)
    modes = list(numbers) if config.train.recompute == "auto" else [config.train.recompute]
    batch, group = config.train.batch, config.train.norm_rows or 1
    for name, rows in (("batch", batch), ("micro_batch", config.train.micro_batch or batch)):
        if rows % group:
            raise UserError(f"train.{name}: {rows} is no multiple of train.norm_rows, {group}. Change one of the two.")
    wanted = config.train.micro_batch or min(batch, max(group, math.ceil(FEWEST_POSITIONS / longest)))
    for mode in modes:
        per_row = numbers[mode]
        rows = max(1, int(budget / per_row / group)) * group
        if rows >= wanted:
            break
    why = {}
    if config.train.recompute == "auto":
        why["recompute"] = "activations fit in memory" if mode == "none" else "more activations would not fit in memory"
    if config.train.micro_batch is not None:
        return min(config.train.micro_batch, batch), mode, why
    why["micro_batch"] = f"about {readable_bytes(per_row)} of activations a row"
    if rows >= batch:
        why["micro_batch"] = "the whole batch fits in memory"
    return min(rows, batch), mode, why


def activations(model_config: Any, precision: str, longest: int, sight: Sight | None) -> dict[str, float]:
    """Return the bytes of activations that a row needs, by what is computed again.

    Args:
        longest: positions of the row.
        sight: what the model makes of an image or a sound, of one that sees or hears them.
    """
    text, size = model_config.get_text_config(), 2 if precision == "bf16" else 4
    layers, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    plain = isinstance(layers, int) and isinstance(width, int) and not getattr(model_config, "backbone_config", None)
    if sight and (sight.positions == 1 or not plain):
        return dict.fromkeys(("none", "selective", "full"), 2.0 * size * sight.numbers)
    assert layers and width  # every model of text has them
    # Numbers kept a position and layer (Korthikanti et al. 2022, section 4.1, without the attention matrix).
    kept = {"none": 34 * layers, "selective": 18 * layers, "full": layers + 34}
    return {mode: float(longest * width * size * count) for mode, count in kept.items()}


def choose_compile(
    config: Config, device: str, precision: str, flops: float, has_experts: bool = False, has_backbone: bool = False
) -> tuple[bool, str]:
    """Return whether the layers are compiled, and why.

    Args:
        flops: floating-point operations of the whole run.
        has_backbone: whether the model is put together of another one and what reads it, such as a detector.

    Raises:
        UserError: asked for, and the model is a mixture of experts; or graphs are asked for where there can be none.
    """
    asked = config.train.compile
    if asked == "graphs" and (not device.startswith("cuda") or precision != "bf16"):
        raise UserError(
            f"train.compile: graphs are recorded on an NVIDIA GPU in bf16, and this run computes on {device} in {precision}. "
            "Give auto, on or off."
        )
    if has_experts:
        if asked in ("on", "graphs"):
            raise UserError(
                "train.compile: a mixture of experts is not supported with compiled layers. Give auto or off."
            )
        return False, "which experts compute is decided position by position"
    if asked != "auto":
        return asked != "off", ""
    if has_backbone:
        return False, "only one of its stacks of layers would be"
    kind = device.split(":")[0]
    if kind not in COMPILES:
        return False, f"not tried on {kind}"
    if kind == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return False, "this machine has no C++ compiler"
    rate, cost, gain = COMPILES[kind]
    expected = flops / rate
    saved = expected * (1 - 1 / gain)
    text = f"about {readable_seconds(expected)} of computing, of which it would save {readable_seconds(saved)}"
    return saved > 2 * cost, f"{text}; compiling takes about {readable_seconds(cost)}"


def flops_per_sight(model: Any, sight: Sight) -> float:
    """Return the floating-point operations of training on one of them: backward twice the forward pass, of what trains."""
    return sight.flops * (1 + 2 * trainable_count(model) / parameter_count(model))


def flops_per_position(model: Any, model_config: Any, sequence: float) -> float:
    """Return the floating-point operations of training on one position: 6 N + 12 L H T.

    N counts the weights of matrix products (no embedding lookups, the output layer also when tied, of experts those that a
    position chooses), L layers, H width, T positions of a row; frozen weights count 2 instead of 6, for their forward pass.
    Nothing recomputed is counted.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    from torch import nn

    text = model_config.get_text_config()
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in looked_up]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        matrices += [p for p in head.parameters() if id(p) in looked_up]
    chosen = getattr(text, "num_experts_per_tok", None)
    sizes = [p.numel() * chosen / p.shape[0] if chosen and p.ndim == 3 else p.numel() for p in matrices]
    forward = sum(2.0 * size for size in sizes)
    backward = sum(4.0 * size for size, p in zip(sizes, matrices, strict=True) if p.requires_grad)
    return forward + backward + 12.0 * text.num_hidden_layers * text.hidden_size * sequence


def _free_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0]
    return free_memory_bytes()


def memory_of(config: Config, model: Any, precision: str) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimizer state."""
    parameters, trained = parameter_count(model), trainable_count(model)
    small = quantised_count(model, config.adapter)
    size = 4 * (parameters - small) + (2 * (parameters - small) if precision == "bf16" else 0)
    return {
        "parameters": size + int(BYTES * small),
        "gradients": 4 * trained,
        "optimizer": 4 * trained * (_STATE_NUMBERS.get(config.optim.name, 2) + (config.optim.average > 0)),
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
    one = memory["gradients"] + memory["optimizer"]  # the parameters that train, as large as their gradients
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
    if config.model.compute and total_rows > MOST_PASSES * rows:
        why["total_steps"] += (
            f"; {total_rows / rows:.0f} passes over the data, and more than {MOST_PASSES} add little "
            "(Muennighoff et al. 2023): get more, or lower --model.compute"
        )
    warmup = within("schedule.warmup", config.schedule.warmup, total)
    if config.freeze.thaw is not None:
        within("freeze.thaw", config.freeze.thaw, total)  # refuses what a run is not measured in
    if config.train.evaluate_every is not None:
        every = max(1, within("train.evaluate_every", config.train.evaluate_every, total))
    else:
        every = max(1, total // 100, min(math.ceil(total / 10), math.ceil(rows / batch)))
        why["evaluate_every"] = "an epoch, between a hundredth and a tenth of the run"
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


def refuse_ranks(config: Config) -> None:
    """Refuse ranks that would have no rows, whose processes alone fill the memory, or with an optimizer that needs one.

    Raises:
        UserError: says which.
    """
    ranks, free = config.parallel.ranks, free_memory_bytes()
    if ranks > config.train.batch:
        raise UserError(
            f"parallel.ranks: {ranks} ranks share a step of {config.train.batch} rows, so some would have none. Give at most "
            f"{config.train.batch}, or a larger --train.batch."
        )
    if ranks > 1 and config.optim.name not in ELEMENTWISE:
        raise UserError(
            f"optim.name: {config.optim.name} is not supported with --parallel.ranks {ranks}. Give {', '.join(ELEMENTWISE)}, "
            "or one rank."
        )
    if ranks > 1 and config.train.norm_rows is not None:
        raise UserError(
            f"train.norm_rows: norms measure rows on one rank only, not on --parallel.ranks {ranks}. Drop one of the two."
        )
    if ranks > 1 and config.freeze.thaw is not None:
        raise UserError(
            f"freeze.thaw: layers thaw on one rank only, not on --parallel.ranks {ranks}. Drop one of the two."
        )
    if ranks > 1 and ranks * RANK_BYTES > free:
        raise UserError(
            f"parallel.ranks: {ranks} processes need {readable_bytes(ranks * RANK_BYTES)} before any model; "
            f"{readable_bytes(free)} are free. Give at most {max(1, free // RANK_BYTES)}."
        )


def limits_of_exactness(model_config: Any) -> str:
    """Return what a person must know of how exactly this model can be trained."""
    dropout = dropout_of(model_config)
    if dropout == 0:
        routed = (
            "; experts are balanced row by row, not over a batch, and rounding may change a choice between two that are equal"
            if router_coefficient(model_config)
            else ""
        )
        return (
            "exact: no dropout, so the result does not depend on micro-batch, packing or ranks (within float rounding)"
            + routed
        )
    return (
        f"dropout {dropout:g} of the model: a resumed run is bit-equal, but another --train.micro-batch, --train.packing or "
        "--parallel.ranks draws other masks "
        "(--train.dropout 0 avoids it)"
    )
