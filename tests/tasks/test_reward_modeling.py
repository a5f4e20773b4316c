"""Reward models: the loss against TRL's trainer, what is read of an answer, scores, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
from burnish.data.loader import collate
from burnish.errors import UserError
from burnish.session import Session
from burnish.terminal import Terminal
from helpers import said_by_card, session_of

TOLERANCE = 1e-6
"""Relative, of a loss in float32."""


def session(path: Path, folder: Path, model: dict[str, Any], **more: Any) -> Session:
    data = {"train": str(path), "holdout": 0} | more.pop("data", {"prompt": "prompt"})
    train = {"precision": "fp32", "batch": 8, "sequence": 64} | more.pop("train", {})
    given: dict[str, Any] = {"data": data, "train": train, "model": model}
    return session_of("reward-modeling", folder, **given, **more)


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_the_loss_is_trls(pairs_file: Path, tiny_bert: Path, tmp_path: Path, center: float) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    made = session(pairs_file, tmp_path / "run", {"path": str(tiny_bert)}, task={"center": center})
    batch = collate(made.stores["train"], made.task, list(range(8)))
    model = made.fit.model.eval()
    config = RewardConfig(
        str(tmp_path / "trl"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        center_rewards_coefficient=center or None, disable_dropout=False,
    )  # fmt: skip
    rows = [{"chosen_ids": [2, 5, 3], "rejected_ids": [2, 6, 3]}]  # never read: the batch is ours
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=made.task.tokenizer)
    inputs = {name: torch.cat([value[::2], value[1::2]]) for name, value in batch.inputs.items()}
    with torch.no_grad():
        found = float(made.task.loss(model, batch)["loss"]) / batch.weights["loss"]
        assert found == pytest.approx(float(trainer.compute_loss(model.eval(), inputs)), rel=TOLERANCE)


def test_an_encoder_reads_prompt_and_answer_as_a_pair(pairs_file: Path, tiny_bert: Path, tmp_path: Path) -> None:
    made = session(pairs_file, tmp_path / "run", {"path": str(tiny_bert)})
    row = next(iter(made.splits.train))
    batch = made.task.collate([made.stores["train"][0]])
    for place, name in enumerate(("chosen", "rejected")):
        wanted = made.task.tokenizer(row.values["given"], row.values[name])
        size = batch.lengths[place]
        assert batch.inputs["input_ids"][place, :size].tolist() == wanted["input_ids"]
        assert batch.inputs["token_type_ids"][place, :size].tolist() == wanted["token_type_ids"]


def test_a_conversation_is_rated_as_the_template_writes_it(pairs_file: Path, tmp_path: Path) -> None:
    rows = [
        {
            name: [{"role": "user", "content": f"Who {n}?"}, {"role": "assistant", "content": f"{name} {n}"}]
            for name in ("chosen", "rejected")
        }
        for n in range(40)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        "model": {"preset": "llama3-nano", "vocab_size": 300},
        "data": {"train": str(path)},
        "train": {"length": "12 steps", "batch": 8, "sequence": 64, "precision": "fp32"},
        "task": {"template": "chatml"},
        "optim": {"lr": 1e-3},
        "run": {"dir": str(tmp_path / "run"), "threads": 1},
    }
    run = burnish.train("reward-modeling", terminal=Terminal(quiet=True), **given)
    assert isinstance(run, burnish.Run) and run.metrics["validation"]["accuracy"] == 1
    better, worse = run.predict([{"chosen": rows[0]["chosen"]}, {"chosen": rows[0]["rejected"]}])
    assert better["score"] > worse["score"]

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(run.folder.model))
    model = AutoModelForSequenceClassification.from_pretrained(str(run.folder.model)).eval()
    text = tokenizer.apply_chat_template(rows[0]["chosen"], tokenize=False)
    with torch.no_grad():
        plain = float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits)
    assert better["score"] == pytest.approx(plain, abs=1e-4)


def test_the_card_rates_as_the_run_does(pairs_file: Path, tiny_bert: Path, tmp_path: Path) -> None:
    run = burnish.train(
        "reward-modeling", terminal=Terminal(quiet=True), model=str(tiny_bert), run={"dir": str(tmp_path / "run")},
        data={"train": str(pairs_file), "prompt": "prompt"}, train={"length": "3 steps", "precision": "fp32"},
    )  # fmt: skip
    assert isinstance(run, burnish.Run)
    asked = {"prompt": "Who sees the river?", "chosen": " The old king does."}
    answer = run.predict(asked)
    assert answer == {**asked, "score": pytest.approx(float(said_by_card(run.path)), abs=1e-5)}
    for wrong, message in (
        ({"chosen": 7}, "Input 1: the chosen answer is int; prompt and answers are text, or lists of messages"),
        ({"prompt": 7}, "Input 1: prompt and answers are text, or lists of messages"),
    ):
        with pytest.raises(UserError, match=message):
            run.predict({**asked, **wrong})


def test_answers_that_are_cut_alike_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"chosen": "the old king " * 9 + "runs", "rejected": "the old king " * 9 + "sees"}) + "\n"
    )
    with pytest.raises(UserError, match=r"pairs.jsonl:1: the two answers do not differ within 8 tokens"):
        session(path, tmp_path / "run", {"path": str(tiny_bert)}, data={}, train={"sequence": 8})
