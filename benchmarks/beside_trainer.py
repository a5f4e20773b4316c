"""A recipe of a task, by burnish and by Hugging Face's Trainer, in turns, each in its own process.

    python -m benchmarks.beside_trainer RECIPE [--sides burnish,trainer,trainer-tuned] [--seeds 1] [--threads 1]
    python -m benchmarks.beside_trainer RECIPE --one trainer      one run, one JSON line

Both get the same first weights, the rows as burnish encodes them, and the same number of steps; both models are scored
by the same code, in float32, on the same rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.burnish_side import Stopwatch
from benchmarks.children import run_child
from benchmarks.clock import Moment
from benchmarks.image_rows import Images, together
from benchmarks.rows import own_cache
from benchmarks.sound_rows import Sounds
from benchmarks.trainer_sentiment import SCHEDULES, TRAINERS, make_stopwatch
from burnish.api import resolve
from burnish.data.store import Store
from burnish.terminal import Terminal
from burnish.units import Duration

SIDES = ("burnish", "trainer", "trainer-tuned")
#: What rows are that have no words to count.
MEDIA = ("images", "audio")
#: burnish again, as long as Trainer took: with how many times the steps, the other two say.
SAME_TIME = "burnish-same-time"
#: Trainer's arguments for images and sounds: of one length, and with whole batches only, as burnish's steps are.
OF_MEDIA = {"train_sampling_strategy": "random", "remove_unused_columns": False, "dataloader_drop_last": True}
Result = dict[str, Any]


def burnish_side(recipe: Path, seed: int, threads: int, times: float = 1) -> Result:
    """Return what burnish reached with a recipe, that many times as long, and what its training took."""
    import burnish

    config = resolve(str(recipe), {})[0]
    length = Duration.parse(config.train.length)
    watch = Stopwatch()
    with own_cache() as folder:
        run = burnish.train(
            str(recipe),
            terminal=watch,
            run={"dir": str(folder / "run"), "seed": seed, "threads": threads, "device": "cpu"},
            train={"evaluate_every": "100%", "length": f"{length.amount * times:g} {length.unit}"},
            checkpoint={"every": "1000 hours"},
        )
        assert isinstance(run, burnish.Run)
        plan, metrics = run.folder.read_json(run.folder.plan), run.metrics
        shown = [figure for figure in run.folder.read_json(run.folder.figures)["figures"] if "rows" in figure]
    return {
        "precision": plan["precision"],
        "steps": metrics["step"],
        "rows_learned": plan["total_rows"],
        "parameters": plan["model"]["parameters"],
        "train": watch.laps.after(),
        "later": after_first_epoch(watch, config.train.batch, plan["data"]["rows"]["train"]),
        "shown": shown[:1],
        **{split: metrics[split] for split in ("validation", "test") if split in metrics},
    }


def trainer_side(recipe: Path, side: str, seed: int, threads: int) -> Result:
    """Return what Trainer reached with the same first weights, rows and settings, and what its training took."""
    import torch

    from burnish.env import load_torch

    load_torch()
    from burnish.evaluate.measure import score
    from burnish.models.begin import first_model
    from burnish.models.freeze import freeze
    from burnish.run import RunFolder
    from burnish.session import Session

    torch.set_num_threads(threads)
    config, task_class, _ = resolve(str(recipe), {"run": {"seed": seed, "device": "cpu", "threads": threads}})
    watch = make_stopwatch()
    with own_cache() as folder:
        session = Session(config, task_class, RunFolder(folder / "run"), Terminal(quiet=True))
        session.prepare()
        given = session.source, session.backbone, session.beginnings
        model, _ = first_model(session.task_class.auto_class, session.model_config, seed, *given)
        freeze(model, config.freeze)
        trainer = make_trainer(session, model, side, str(folder / "trainer"), watch)
        trainer.train()
        model = trainer.model.float().eval()
        session.task.check(model)  # only now: a detector's own loss is what Trainer learns by
        found = {
            split: session.task.metrics(score(model, session.task, store, batch=32, device="cpu"))
            for split, store in session.stores.items()
            if split != "train"
        }
        plan = session.plan
    return {
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "steps": trainer.state.global_step,
        "rows_learned": trainer.state.global_step * config.train.batch
        if task_class.reads in MEDIA
        else rows_seen(trainer.state.global_step, config.train.batch, len(session.stores["train"])),
        "parameters": plan.model["parameters"],
        "train": watch.laps.after(),
        "later": after_first_epoch(watch, config.train.batch, len(session.stores["train"])),
        **found,
    }


def after_first_epoch(watch: Any, batch: int, rows: int) -> dict[str, float]:
    """Return what the steps after the first epoch took; of a run of one epoch, those after its first step."""
    first = -(-rows // batch)
    return watch.laps.after(first if first < watch.laps.count else 1)


def rows_seen(steps: int, batch: int, rows: int) -> int:
    """Return how many rows Trainer sees in some steps: it cuts the last batch of each epoch short.

    >>> rows_seen(5, 4, 10)
    18
    """
    epochs, more = divmod(steps, -(-rows // batch))
    return epochs * rows + more * batch


def make_trainer(session: Any, model: Any, side: str, folder: str, watch: Any) -> Any:
    """Return a Trainer that does the work of a prepared session."""
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        Trainer,
        TrainingArguments,
    )

    config, plan, tokenizer = session.config, session.plan, session.task.tokenizer
    sequences = session.task.name == "translation"
    kinds: tuple[Any, Any] = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if sequences else (Trainer, TrainingArguments)
    collator: Any
    if session.task.reads == "images":
        collator, rows = together, Images(session, kept=side == "trainer-tuned")
    elif session.task.reads == "audio":
        rows = Sounds(session)
        collator = rows.together
    else:
        collator = DataCollatorForSeq2Seq(tokenizer, model=model) if sequences else DataCollatorWithPadding(tokenizer)
        rows = rows_of(session.stores["train"], sequences)
    arguments = {
        "output_dir": folder,
        "seed": config.run.seed,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": plan.total_steps,
        "per_device_train_batch_size": config.train.batch,
        "learning_rate": plan.lr,
        "lr_scheduler_type": SCHEDULES[config.schedule.name],
        "warmup_steps": plan.warmup_steps,
        "weight_decay": config.optim.weight_decay,
        "max_grad_norm": config.optim.clip,
        **TRAINERS[side],
        **(OF_MEDIA if session.task.reads in MEDIA else {}),
    }
    return kinds[0](
        model=model,
        args=kinds[1](**arguments),
        data_collator=collator,
        train_dataset=rows,
        callbacks=[watch],
    )


def rows_of(store: Store, sequences: bool) -> list[dict[str, Any]]:
    """Return encoded rows as transformers' models and collators take them."""
    rows = []
    for number in range(len(store)):
        example = store[number]
        row: dict[str, Any] = {"input_ids": example["input_ids"].tolist()}
        row["attention_mask"] = [1] * len(row["input_ids"])
        if sequences:
            row["labels"] = example["labels"].tolist()
        else:
            row["start_positions"], row["end_positions"] = map(int, example["target"])
        if "token_type_ids" in example:
            row["token_type_ids"] = example["token_type_ids"].tolist()
        rows.append(row)
    return rows


# -- without a network -------------------------------------------------------------------------------------------------


def baselines(recipe: Path) -> Result:
    """Return what simple rules reach on the rows that are scored."""
    from burnish.data.prepare import find_rows

    config, task_class, _ = resolve(str(recipe), {})
    if task_class.reads in MEDIA:
        return {}
    splits = find_rows(config, task_class)
    scored = {"validation": splits.validation, "test": splits.test}
    rule = copied_and_remembered if task_class.name == "translation" else overlapping
    return {split: rule(list(splits.train), list(rows)) for split, rows in scored.items() if rows is not None}


def overlapping(train: Sequence[Any], rows: Sequence[Any]) -> dict[str, float]:
    """Return F1 and exact match of the piece of the context around which most words of the question stand.

    Pieces of one to five words that share none with the question are tried, each with the ten words before and after it.
    Source: the sliding window of Richardson et al. 2013, section 5, for spans.
    """
    from burnish.tasks.question_answering import judge, normalised

    found: list[tuple[float, float]] = []
    for row in rows:
        asked = set(normalised(row.values["question"]).split())
        words = row.values["context"].split()
        known = [normalised(word) in asked and bool(normalised(word)) for word in words]
        before = np.concatenate([[0], np.cumsum(known)])
        best, answer = -1, ""
        for start in range(len(words)):
            for end in range(start + 1, min(start + 6, len(words) + 1)):
                if before[end] > before[start]:
                    break
                near = before[min(end + 10, len(words))] - before[max(start - 10, 0)]
                if near > best:
                    best, answer = near, " ".join(words[start:end])
        answers = row.values["answers"]
        found.append(judge(answer, answers["text"] if "text" in answers else [given["text"] for given in answers]))
    exact, f1 = np.array(found).mean(0)
    return {"f1": float(f1), "exact_match": float(exact)}


def copied_and_remembered(train: Sequence[Any], rows: Sequence[Any]) -> dict[str, float]:
    """Return chrF of the source itself, and of the translation of the most alike training text (by letters)."""
    import sacrebleu
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    known = letters.fit_transform([row.values["text"] for row in train])
    nearest = (letters.transform([row.values["text"] for row in rows]) @ known.T).toarray().argmax(1)
    truths = [[row.values["target"] for row in rows]]
    return {
        "chrf_copied": sacrebleu.corpus_chrf([row.values["text"] for row in rows], truths).score,
        "chrf_remembered": sacrebleu.corpus_chrf([train[place].values["target"] for place in nearest], truths).score,
    }


def interleave(
    recipe: Path, *, sides: Sequence[str], seeds: int, threads: int, say: Callable[[str], None]
) -> list[Result]:
    """Return the results of every side for every seed, run in turns, the baselines first."""
    results: list[Result] = [{"side": "baselines", **baselines(recipe)}]
    for seed in range(seeds):
        for side in sides:
            times = 1.0
            if side == SAME_TIME:
                took = {found["side"]: found["train"]["cpu"] for found in results if found.get("seed") == seed}
                times = round(took["trainer"] / took["burnish"], 1)
            given = (recipe, "--one", side, "--seed", seed, "--threads", threads, "--times", times)
            results.append(run_child("benchmarks.beside_trainer", *given, threads=threads))
            say(json.dumps(results[-1]))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one side once, or every side in turns; print a JSON line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--sides", default=",".join(SIDES), help="comma-separated")
    parser.add_argument("--one", choices=[*SIDES, SAME_TIME])
    parser.add_argument("--times", type=float, default=1, help="of the recipe's length, by burnish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.one is None:
        sides = given.sides.split(",")
        interleave(given.recipe.resolve(), sides=sides, seeds=given.seeds, threads=given.threads, say=print)
        return
    if given.one in ("burnish", SAME_TIME):
        result = burnish_side(given.recipe, given.seed, given.threads, given.times)
    else:
        result = trainer_side(given.recipe, given.one, given.seed, given.threads)
    whole = {"cpu": Moment.now().cpu}
    print(json.dumps({"side": given.one, "seed": given.seed, "threads": given.threads, "whole": whole, **result}))


if __name__ == "__main__":
    main()
