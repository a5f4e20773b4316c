"""Hugging Face's Trainer and burnish on the same model, rows and settings, in turns, each in a process of its own.

    python -m benchmarks.trainer_sentiment [--recipe R] [--seeds 3] [--threads N] [--sides burnish,trainer,...]
    python -m benchmarks.trainer_sentiment --one trainer --seed 0      one run, one JSON line

Sides: `burnish` (the recipe), `burnish-fp32`, `trainer` (Trainer's defaults: float32, rows in random order, padding per
batch), `trainer-bf16` (the same in bfloat16), `trainer-tuned` (bfloat16, rows of like length together).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import burnish
from benchmarks.burnish_side import measure as measure_burnish
from benchmarks.children import run_child
from benchmarks.clock import Laps, Moment
from benchmarks.rows import RECIPES, Split, digest, labels, own_cache, read_split, texts
from burnish.api import resolve
from burnish.config import Config
from burnish.optim.optimizers import parameter_groups
from burnish.task import Row
from burnish.tasks.classification import single_label_metrics
from burnish.terminal import Terminal
from burnish.units import Duration

#: Trainer's arguments that differ from its defaults, by side.
TRAINERS: dict[str, dict[str, Any]] = {
    "trainer": {},
    "trainer-bf16": {"bf16": True},
    "trainer-tuned": {"bf16": True, "train_sampling_strategy": "group_by_length"},
}
#: Burnish's precision in place of the recipe's, by side.
OWN: dict[str, str | None] = {"burnish": None, "burnish-fp32": "fp32"}
SIDES = ("burnish", "trainer", "trainer-tuned")
#: With the two that show what precision alone does.
ALL_SIDES = (*SIDES, "trainer-bf16", "burnish-fp32")

#: burnish's schedules as Trainer names them.
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}

Settings = dict[str, Any]
"""Everything of a recipe and its plan that Trainer needs to do the same work; see `settings_of`."""


def settings_of(recipe: Path) -> Settings:
    """Return a recipe's settings in Trainer's terms; what the recipe leaves open is what burnish derives from it.

    Raises:
        ValueError: the recipe asks for something that Trainer cannot be given equally.
    """
    config, _, _ = resolve(str(recipe), {})
    refuse_what_has_no_match(config, recipe)
    with own_cache():
        plan = burnish.train(str(recipe), dry_run=True, terminal=Terminal(quiet=True))
    assert isinstance(plan, dict)
    return {
        "model": config.model.path,
        "sequence": plan["sequence"],
        "frozen_layers": config.freeze.layers,
        "dropout": config.train.dropout,
        "trainer": {
            "num_train_epochs": Duration.parse(config.train.length).amount,
            "per_device_train_batch_size": config.train.batch,
            "learning_rate": plan["lr"],
            "lr_scheduler_type": SCHEDULES[config.schedule.name],
            "warmup_steps": plan["warmup_steps"],
            "weight_decay": config.optim.weight_decay,
            "adam_beta1": config.optim.beta1,
            "adam_beta2": config.optim.beta2,
            "adam_epsilon": config.optim.eps,
            "max_grad_norm": config.optim.clip,
        },
    }


def refuse_what_has_no_match(config: Config, recipe: Path) -> None:
    """Check that Trainer can do the same.

    Raises:
        ValueError: naming the first setting it has no match for.
    """
    same = {
        "task.name": config.task.name == "text-classification",
        "model.path": config.model.path is not None,
        "freeze.layers": isinstance(config.freeze.layers, int),
        "freeze.pattern": not config.freeze.pattern,
        "optim.name": config.optim.name == "adamw",
        "optim.layer_decay": config.optim.layer_decay == 1,
        "optim.lr_scale": not config.optim.lr_scale,
        "schedule.name": config.schedule.name in SCHEDULES,
        "schedule.final": config.schedule.final == 0,
        "train.length": Duration.parse(config.train.length).unit == "epochs",
        "train.best": config.train.best is None and config.train.patience is None,
    }
    for setting, matches in same.items():
        if not matches:
            raise ValueError(f"{recipe}: Trainer cannot be given the same {setting}")


def make_model(settings: Settings, names: list[str]) -> Any:
    """Return the pretrained model with a new head, the embeddings and the lowest layers frozen."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(
        settings["model"],
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="single_label_classification",
    )
    if settings["dropout"] is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = settings["dropout"]
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], config=config, dtype=torch.float32)
    if settings["frozen_layers"]:
        model.base_model.embeddings.requires_grad_(False)
        for layer in model.base_model.encoder.layer[: settings["frozen_layers"]]:
            layer.requires_grad_(False)
    return model


def make_stopwatch() -> Any:
    """Return a callback that notes when the first step of training begins and when each step is done."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.laps = Laps()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.laps.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.laps.step(state.global_step)

    return Stopwatch()


def metrics(predicted: Any) -> dict[str, float]:
    """Return what burnish measures, by the same code."""
    return single_label_metrics({"scores": predicted.predictions, "label": predicted.label_ids})


def encode(rows: Sequence[Row], tokenizer: Any, sequence: int, names: list[str]) -> Any:
    """Return the rows as Trainer takes them."""
    encoded = tokenizer(texts(rows), truncation=True, max_length=sequence)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": names.index(label)}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels(rows), strict=True)
    ]


def make_trainer(split: Split, settings: Settings, side: str, seed: int, folder: str, watch: Any) -> Any:
    """Return a Trainer with everything it needs; it saves and evaluates nothing on the way."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    names = sorted(set(labels(split.train)))
    tokenizer: Any = AutoTokenizer.from_pretrained(settings["model"])
    set_seed(seed)
    return Trainer(
        model=make_model(settings, names),
        args=TrainingArguments(
            output_dir=folder,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            per_device_eval_batch_size=32,
            **settings["trainer"],
            **TRAINERS[side],
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encode(split.train, tokenizer, settings["sequence"], names),
        eval_dataset=encode(split.held_out, tokenizer, settings["sequence"], names),
        compute_metrics=metrics,
        callbacks=[watch],
    )


def measure_trainer(recipe: Path, settings: Settings, *, side: str, seed: int, threads: int) -> dict[str, Any]:
    """Return what a run of Trainer reached, and what it took.

    `train` is the time from before the first step to after the last, `whole` that of the whole process: imports, data,
    tokenizing, model, training, evaluation.
    """
    import torch

    torch.set_num_threads(threads)
    split = read_split(recipe)
    watch = make_stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(split, settings, side, seed, folder, watch)
        trained = trainer.train()
        held_out = trainer.evaluate()
    whole = Moment.now()
    parameters = list(trainer.model.parameters())
    return {
        "side": side,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        **{name: held_out[f"eval_{name}"] for name in ("loss", "accuracy", "macro_f1", "calibration_error")},
        "mean_train_loss": trained.training_loss,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "same_decay": decayed(trainer) == decayed_by_burnish(trainer.model, split.config),
        "steps": trainer.state.global_step,
        "rows_learned": round(settings["trainer"]["num_train_epochs"] * len(split.train)),
        "train": watch.laps.after(),
        "whole": {"cpu": whole.cpu},
        "rows": {"train": digest(split.train), "held_out": digest(split.held_out)},
    }


def decayed(trainer: Any) -> set[str]:
    """Return the trained parameters that Trainer's weight decay reaches."""
    names = set(trainer.get_decay_parameter_names(trainer.model))
    return {name for name, value in trainer.model.named_parameters() if value.requires_grad and name in names}


def decayed_by_burnish(model: Any, config: Config) -> set[str]:
    """Return the trained parameters that burnish's weight decay would reach."""
    groups = parameter_groups(model, config.optim.model_copy(update={"weight_decay": 1.0}), 1.0)
    reached = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    return {name for name, value in model.named_parameters() if id(value) in reached}


def interleave(
    recipe: Path, *, sides: Sequence[str], seeds: int, threads: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return the results of every side for every seed, run in turns: A B C A B C, not A A B B C C.

    Args:
        say: is given each result as a JSON line as soon as it is there.
    """
    settings = json.dumps(settings_of(recipe))
    results = []
    for seed in range(seeds):
        for side in sides:
            given = ("--one", side, "--recipe", recipe, "--seed", seed, "--threads", threads, "--settings", settings)
            results.append(run_child("benchmarks.trainer_sentiment", *given, threads=threads))
            say(json.dumps(results[-1]))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one side once, or every side in turns; print a JSON line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "minilm-sentiment-all.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sides", default=",".join(SIDES), help="comma-separated")
    parser.add_argument("--one", choices=ALL_SIDES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, help="what settings_of returns, as JSON")
    given = parser.parse_args(arguments)
    if given.one is None:
        sides = given.sides.split(",")
        interleave(given.recipe.resolve(), sides=sides, seeds=given.seeds, threads=given.threads, say=print)
        return
    same = {"seed": given.seed, "threads": given.threads}
    if given.one in OWN:
        result = measure_burnish(given.recipe, **same, precision=OWN[given.one])
    else:
        settings = given.settings or settings_of(given.recipe)
        result = measure_trainer(given.recipe, settings, side=given.one, **same)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
