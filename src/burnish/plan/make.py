"""The plan of a run that begins: everything that can be known before its model is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.config import Config
from burnish.data.prepare import Splits, recount
from burnish.data.store import Store
from burnish.errors import UserError, unknown
from burnish.models.adapter import adapt
from burnish.models.dial import dial_of
from burnish.models.freeze import freeze, thawing
from burnish.models.load import describe, parameter_count, skeleton, trainable_count
from burnish.models.router import routers
from burnish.optim.optimizers import Optimizers
from burnish.optim.schedules import Schedule
from burnish.plan.derive import (
    Plan,
    activations,
    choose_compile,
    choose_device,
    choose_evaluate_rows,
    choose_length,
    choose_lr,
    choose_micro_batch,
    choose_precision,
    choose_sequence,
    flops_per_position,
    flops_per_sight,
    memory_of,
    refuse_ranks,
    refuse_what_cannot_fit,
)
from burnish.run import RunFolder
from burnish.task import Task


def make_plan(
    config: Config,
    task: Task,
    model_config: Any,
    splits: Splits,
    stores: dict[str, Store],
    folder: RunFolder,
    sequence: int,
    new: Sequence[int],
) -> Plan:
    """Return all that is derived before the model is built, with the reasons.

    Args:
        new: ids of the tokens that the pretrained model has not.

    Raises:
        UserError: a setting names what is not there, or the run cannot fit this machine.
    """
    import torch

    why: dict[str, str] = {}
    device, why["device"] = choose_device(config)
    precision, why["precision"] = choose_precision(config, device)
    why["sequence"] = choose_sequence(config, task, model_config)[1]
    model = skeleton(task.auto_class, model_config)
    sight = task.sight(model)
    total = parameter_count(model)
    adapt(model, config.adapter, config.freeze, new)
    thawing(model, config.freeze, freeze(model, config.freeze))  # refuses what the model has not
    Optimizers(model, config.optim, 1.0)  # refuses unknown names and patterns
    refuse_ranks(config)
    if task.compares and config.train.batch == 1:
        raise UserError(f"train.batch: {task.name} compares the rows of a step, and 1 has no other. Give at least 2.")
    lr, why["lr"] = choose_lr(config, model)
    memory = memory_of(config, model, precision)
    refuse_what_cannot_fit(config, folder, device, memory)
    store = stores["train"]
    longest = int(store.lengths().max())
    numbers = activations(model_config, precision, longest, sight)
    micro, recompute, reasons = choose_micro_batch(config, device, numbers, longest, sum(memory.values()))
    why |= reasons
    tokens = float(store.lengths().mean())
    rows, steps, warmup, every, reasons = choose_length(config, len(store), tokens)
    per_position = flops_per_position(model, model_config, tokens) if sight is None else 0.0
    if sight:
        per_position = flops_per_sight(model, sight) / sight.positions
    flops = per_position * tokens * rows
    compiled, why["compile"] = choose_compile(
        config, device, precision, flops, bool(routers(model)), hasattr(model_config, "backbone_config")
    )
    Schedule(config.schedule, steps, warmup)  # refuses unknown names
    best = config.train.best or task.metric_names[0]
    if best not in task.metric_names:
        raise unknown(f"metric of {task.name} in train.best:", best, task.metric_names)
    if "validation" not in stores and (config.train.best or config.train.patience):
        raise UserError("train.best: there are no validation rows to compare by; give --data.validation or a holdout.")
    why |= reasons
    seen = stores["validation"].lengths() if "validation" in stores else None
    scored, why["evaluate_rows"] = choose_evaluate_rows(config, store.lengths(), seen, rows, -(-steps // every))
    return Plan(
        device=device,
        threads=config.run.threads or max(1, torch.get_num_threads() // config.parallel.ranks),
        precision=precision,
        sequence=sequence,
        micro_batch=micro,
        lr=lr,
        total_rows=rows,
        total_steps=steps,
        warmup_steps=warmup,
        evaluate_every=every,
        evaluate_rows=scored,
        best=best,
        arrangement="",  # the built model is tried
        recompute=recompute,
        compile=compiled,
        memory=memory,
        model={
            "summary": describe(model),
            "parameters": total,
            "trainable": trainable_count(model),
            "flops_per_position": flops / (tokens * rows),
            **({"dial": dial.rows()} if (dial := dial_of(config)) else {}),
        },
        data=recount(splits, stores),
        facts=dict(task.facts),
        why={name: reason for name, reason in why.items() if reason},
    )
