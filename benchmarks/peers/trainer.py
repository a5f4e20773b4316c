"""Hugging Face's Trainer, or TRL's SFTTrainer, on given rows.

    python -m benchmarks.peers.trainer FOLDER ARGUMENTS [--kind trainer|trl] [--stop-at STEP] [--output DIR] [--resume]

ARGUMENTS is JSON: arguments of `TrainingArguments` (or `SFTConfig`) over their defaults and over what the work itself asks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gauge import Gauge, show
from benchmarks.peers.given import Example, Given, Tally, held_out_loss, versions


def arguments_of(given: Given, kind: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return every argument that is not a default: the work's, and this side's own."""
    common = {
        "max_steps": given.steps,
        "per_device_train_batch_size": given.batch,
        "learning_rate": given.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": given.clip,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": given.device == "cpu",
    }
    whole_rows = {"max_length": None} if kind == "trl" else {}  # else it cuts them to 1,024 tokens
    return common | whole_rows | own


def training_rows(given: Given, sampling: str) -> list[Example]:
    """Return the rows of the whole run in the work's order, or each once where the side orders them itself."""
    rows = given.rows() if given.encoded else encoded(given)
    return [rows[number] for number in given.order()] if sampling == "sequential" else rows


def encoded(given: Given) -> list[Example]:
    """Return the rows, encoded here from texts and labels."""
    texts = given.rows("train")
    names = sorted({row["label"] for row in texts})
    ids = given.tokenizer()([row["text"] for row in texts], truncation=True, max_length=512)["input_ids"]
    return [{"input_ids": of, "labels": names.index(row["label"])} for of, row in zip(ids, texts, strict=True)]


def make_trainer(given: Given, kind: str, arguments: dict[str, Any], tally: Tally, watch: Any) -> Any:
    """Return the trainer, which also tells the tally what it works on."""
    import transformers

    model, tokenizer = given.model(), given.tokenizer()
    tokenizer.pad_token_id = given.pad_id
    streamed = arguments.pop("streamed", False)
    rows: Any = training_rows(given, arguments["train_sampling_strategy"])
    if kind == "trl":
        import trl
        from datasets import Dataset

        base, config, collator = trl.SFTTrainer, trl.SFTConfig, None
        rows = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        more = {"processing_class": tokenizer}
    else:
        base, config, more = transformers.Trainer, transformers.TrainingArguments, {}
        pad = transformers.DataCollatorForSeq2Seq if given.causal else transformers.DataCollatorWithPadding
        collator = pad(tokenizer)
        rows = stream(rows) if streamed else rows

    class Told(base):
        """Counts what goes through it."""

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            counted = dict(inputs)
            loss = super().training_step(model, inputs, *rest)
            tally.add(counted, loss)
            return loss

    return Told(
        model=model,
        args=config(**arguments),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[watch],
        **more,
    )


def make_watch(gauge: Gauge, stop_at: int, resume: bool) -> Any:
    """Return a callback that tells the gauge when training begins and when each step is done, and ends the run."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if not resume:  # else the clock runs since before the checkpoint was read
                gauge.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            gauge.step()
            control.should_training_stop = control.should_training_stop or state.global_step >= stop_at

    return Watch()


def stream(rows: list[Example]) -> Any:
    """Return the rows as a dataset that can only be read from its beginning."""
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Example]:
            return iter(rows)

    return Stream()


def measure(given: Given, kind: str, own: dict[str, Any], stop_at: int | None, output: str, resume: bool) -> None:
    """Train and print what it took and what it reached."""
    gauge, tally = Gauge(given.untimed), Tally(given.untimed)
    arguments = arguments_of(given, kind, own)
    watch = make_watch(gauge, stop_at or given.steps, resume)
    trainer = make_trainer(given, kind, {**arguments, "output_dir": output}, tally, watch)
    gauge.begin()
    trainer.train(resume_from_checkpoint=True if resume else None)
    show(
        {
            **gauge.result(),
            **tally.result(),
            "held_out": held_out_loss(given, trainer.model.state_dict()),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "arguments": arguments,
            "versions": versions(),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--kind", choices=["trainer", "trl"], default="trainer")
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--output")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        given = Given.read(asked.folder)
        measure(given, asked.kind, asked.arguments, asked.stop_at, asked.output or folder, asked.resume)


if __name__ == "__main__":
    main()
