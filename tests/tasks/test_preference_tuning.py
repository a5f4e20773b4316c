"""Preference tuning: losses and tokens against TRL's own code, what the reference is, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import burnish
from burnish.data.loader import collate
from burnish.data.pairs import halves
from burnish.engine.step import accumulate
from burnish.errors import UserError
from burnish.session import Session
from burnish.tasks.preference_tuning import PreferenceTuning, pair_losses
from burnish.terminal import Terminal
from helpers import preferences, session_of

TOLERANCE = 1e-6
"""Relative, of a loss in float32."""
ROWS = list(range(8))


def settings_of(path: Path, **groups: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": {"preset": "gpt2-nano", "vocab_size": 300},
        "data": {"train": str(path), "prompt": "prompt", "holdout": 0},
        "train": {"batch": 8, "sequence": 128, "precision": "fp32"},
    }
    for name, values in groups.items():
        given[name] = {**given.get(name, {}), **values}
    return given


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.fixture(scope="module")
def reference(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("reference")
    session = session_of(PreferenceTuning.name, folder / "run", **settings_of(pairs_file), task={"loss": "simpo"})
    with torch.no_grad():
        for value in session.fit.model.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    session.fit.model.save_pretrained(str(folder / "model"))
    session.task.tokenizer.save_pretrained(str(folder / "model"))
    return folder / "model"


def loss_of(session: Session) -> float:
    """Return the mean loss of the first rows."""
    batch = collate(session.stores["train"], session.task, ROWS)
    with torch.no_grad():
        return float(session.task.loss(session.fit.model, batch)["loss"]) / batch.weights["loss"]


def trl_loss(session: Session, rows: list[dict[str, Any]], reference: Path, folder: Path, **settings: Any) -> float:
    """Return what TRL's trainer computes for the same rows, from their text on."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    tokenizer = session.task.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    config = DPOConfig(
        str(folder), report_to=[], use_cpu=True, max_length=None, gradient_checkpointing=False, disable_tqdm=True,
        bf16=False, **settings,
    )  # fmt: skip
    trainer = DPOTrainer(
        session.fit.model,
        AutoModelForCausalLM.from_pretrained(str(reference)),
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in ROWS])
    ours = collate(session.stores["train"], session.task, ROWS)
    assert ours.lengths is not None
    theirs = batch["attention_mask"].sum(1) - 1
    assert torch.stack(theirs.chunk(2), 1).flatten().tolist() == ours.lengths
    assert int(batch["completion_mask"].sum()) == len(ours.targets["labels"])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), batch))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_the_loss_is_trls(pairs_file: Path, reference: Path, tmp_path: Path, loss: str) -> None:
    task = {"loss": loss, "beta": 0.3, "reference": str(reference)}
    session = session_of(PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file), task=task)
    wanted = trl_loss(session, preferences(8), reference, tmp_path / "trl", loss_type=[loss], beta=0.3)
    assert loss_of(session) == pytest.approx(wanted, rel=TOLERANCE)
    session.task.settings = session.task.settings.model_copy(update={"beta": 0.31})
    assert loss_of(session) != pytest.approx(wanted, rel=1000 * TOLERANCE)


def test_conversations_are_read_as_trl_reads_them(pairs_file: Path, reference: Path, tmp_path: Path) -> None:
    """In both layouts: with a column for the prompt, and with the prompt at the head of both answers."""
    rows = [
        {
            "prompt": [say("system", "Be brief."), say("user", row["prompt"])],
            **{name: [say("assistant", row[name].strip())] for name in ("chosen", "rejected")},
        }
        for row in preferences(8)
    ]
    implicit = [{name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")} for row in rows]
    template = tmp_path / "template.jinja"  # TRL also learns what a template writes after the mark that ends a turn
    template.write_text(
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = []
    for name, layout in (("explicit", rows), ("implicit", implicit)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in layout))
        data = {"train": str(path), "prompt": "prompt" if name == "explicit" else None}
        given = settings_of(pairs_file, data=data, model={"preset": None, "vocab_size": None, "path": str(reference)})
        given = {**given, "task": {"template": str(template), "reference": str(reference)}}
        session = session_of(PreferenceTuning.name, tmp_path / name, **given)
        with torch.no_grad():
            session.fit.model.transformer.wte.weight.mul_(1.1)
        wanted = trl_loss(session, layout, reference, tmp_path / "trl")
        found.append(loss_of(session))
        assert found[-1] == pytest.approx(wanted, rel=TOLERANCE) and wanted != pytest.approx(math.log(2), rel=1e-3)
    assert found[0] == found[1]


def test_a_run_on_conversations_answers_what_it_is_asked(pairs_file: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [say("user", row["prompt"])],
            **{name: [say("assistant", row[name].strip())] for name in ("chosen", "rejected")},
        }
        for row in preferences(40)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = settings_of(pairs_file, data={"train": str(path), "prompt": "prompt"}, run={"dir": str(tmp_path / "run")})
    given["train"] = {**given["train"], "length": "2 steps"}
    run = burnish.train(
        PreferenceTuning.name, terminal=Terminal(quiet=True), **{**given, "task": {"template": "chatml"}}
    )
    assert isinstance(run, burnish.Run)
    short = {"temperature": 0, "max_tokens": 8}
    found = run.predict("Was the king good?", **short)
    assert found["prompt"] == "Was the king good?"
    asked = {"prompt": [say("user", "Was the king good?")]}
    assert run.predict(asked, **short)["generated"] == found["generated"]
    assert run.predict("Is it a stone, or a river?", **short)["prompt"] == "Is it a stone, or a river?"


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.1), ("simpo", 0.0), ("simpo", 0.2)])
def test_smoothing_and_simpo_are_trls(loss: str, smoothing: float) -> None:
    """By TRL's contrastive trainer, which has no reference: its log-probabilities are those of the model alone."""
    from trl.experimental.cpo import CPOTrainer

    given = PreferenceTuning.Settings(loss=loss, beta=2.0, gamma=0.7, label_smoothing=smoothing)
    chosen, rejected = torch.tensor([-1.0, -0.5, -3.0]), torch.tensor([-1.2, -2.5, -0.1])
    trainer: Any = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=smoothing, loss_type=loss,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    wanted, _, _ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    assert torch.allclose(pair_losses(torch.stack([chosen, rejected], 1), given), wanted, rtol=TOLERANCE)


def test_orpo_is_trls(pairs_file: Path, tmp_path: Path) -> None:
    """From plain logits: the mean log-probability of each answer, and TRL's odds ratio of the two."""
    from trl.experimental.orpo import ORPOTrainer

    session = session_of(
        PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file), task={"loss": "orpo", "beta": 0.3}
    )
    model, batch = session.fit.model.eval(), collate(session.stores["train"], session.task, ROWS)
    means = []
    for row in ROWS:
        example = session.stores["train"][row]
        for ids, scored in zip(halves(example, "input_ids"), halves(example, "scored"), strict=True):
            with torch.no_grad():
                every = model(input_ids=torch.tensor(ids[None, :-1].astype(int))).logits[0].log_softmax(-1)
            means.append(float(every[range(len(ids) - 1), ids[1:].astype(int)][scored[1:].astype(bool)].mean()))
    chosen, rejected = torch.tensor(means).view(-1, 2).unbind(1)
    trainer: Any = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratios = ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    assert loss_of(session) == pytest.approx(float((-chosen - ratios).mean()), rel=10 * TOLERANCE)
    assert batch.weights == {"loss": len(ROWS)} and session.task.frozen_model() is None


def test_an_answer_that_is_certain_has_a_gradient() -> None:
    given = PreferenceTuning.Settings(loss="orpo")
    rewards = torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [-200.0, -1.0]], requires_grad=True)
    losses = pair_losses(rewards, given)
    losses.sum().backward()
    assert losses.isfinite().all() and rewards.grad is not None and rewards.grad.isfinite().all()
    assert (rewards.grad[:, 0] <= -1).all()


def test_the_gradient_is_that_of_plain_logits(pairs_file: Path, reference: Path, tmp_path: Path) -> None:
    """Against log_softmax over all logits, for parameters of every kind."""
    session = session_of(
        PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file), task={"reference": str(reference)}
    )
    model, batch = session.fit.model, collate(session.stores["train"], session.task, ROWS)
    (session.task.loss(model, batch)["loss"]).backward()
    found = [value.grad.clone() for value in model.parameters()]
    model.zero_grad()
    logits = model(**batch.inputs).logits
    every = logits.log_softmax(-1).flatten(0, 1)[batch.targets["places"], batch.targets["labels"]]
    rows = batch.targets["places"] // logits.shape[1]
    sums = torch.stack([every[rows == row].sum() for row in range(len(logits))]).view(-1, 2)
    rewards = 0.1 * (sums - batch.targets["remembered"])
    (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).sum()).backward()
    squares = [
        (float((ours - value.grad).square().sum()), float(value.grad.square().sum()))
        for ours, value in zip(found, model.parameters(), strict=True)
    ]
    assert (sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5 < 1e-5


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "task.label_smoothing: ipo has none. Give --task.loss sigmoid or simpo, or leave it out.",
        ),
        (
            {"loss": "simpo", "reference": "x"},
            "task.reference: simpo has none. Give --task.loss sigmoid or hinge or ipo",
        ),
        ({"loss": "orpo", "reference": "x"}, "task.reference: orpo has none. Give --task.loss sigmoid or hinge or ipo"),
        ({"loss": "orpo", "label_smoothing": 0.1}, "task.label_smoothing: orpo has none."),
        ({"gamma": 0.7}, "task.gamma: sigmoid has none. Give --task.loss simpo, or leave it out."),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    pairs_file: Path, tmp_path: Path, task: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        session_of(PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file), task=task)


def test_a_prompt_that_leaves_no_room_is_refused_and_a_cut_answer_is_said(pairs_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs.jsonl:\d+: the prompt leaves no room for an answer in a sequence of 8"):
        session_of(PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file, train={"sequence": 8}))
    session = session_of(PreferenceTuning.name, tmp_path / "run", **settings_of(pairs_file, train={"sequence": 44}))
    store = session.stores["train"]
    assert 0 < int(store.values("cut").sum()) < len(store)
    assert all(max(store[row]["sizes"]) <= 45 for row in range(len(store)))


@pytest.mark.parametrize("loss", ["sigmoid", "orpo"])
def test_experts_are_balanced_beside_the_pairs_however_a_step_is_cut(
    pairs_file: Path, tmp_path: Path, loss: str
) -> None:
    """Two terms, of pairs and of rows: a pair is two rows."""
    gradients = []
    for micro_batch in (8, 3):
        given = settings_of(pairs_file, model={"preset": "qwen3-moe-nano"}, train={"micro_batch": micro_batch})
        session = session_of(PreferenceTuning.name, tmp_path / "run", **given, task={"loss": loss})
        session.join()
        batches = session.job.loader.step(0)
        assert [batch.weights["router"] for batch in batches] == [2 * batch.weights["loss"] for batch in batches]
        session.job.weights.forget_gradients()
        accumulate(session.job.model, session.job.stack, session.task, batches, "cpu", 0)
        trained = session.job.weights.trained()
        gradients.append(torch.cat([value.grad.flatten() for value in trained if value.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) <= 1e-5
