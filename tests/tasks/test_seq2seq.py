"""Translation and summarization: losses against transformers, figures against sacreBLEU and by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.errors import UserError
from burnish.evaluate.measure import score
from burnish.session import Session
from burnish.task import Row, registry
from burnish.tasks.seq2seq import Summarization, Translation, _texts
from burnish.terminal import Terminal
from helpers import session_of


def session(
    words_file: Path, folder: Path, preset: str = "transformer-nano", sequence: int = 32, **more: Any
) -> Session:
    settings: dict[str, Any] = {
        "preset": preset,
        "model": {"vocab_size": 300},
        "data": str(words_file),
        "train": {"length": "4 steps", "batch": 8, "sequence": sequence, "precision": "fp32"},
        "run": {"dir": str(folder), "threads": 1},
        **more,
    }
    return session_of("translation", folder, **settings)


@pytest.mark.parametrize("preset", ["transformer-nano", "t5-nano"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs(words_file: Path, tmp_path: Path, preset: str, smoothing: float) -> None:
    made = session(words_file, tmp_path / "run", preset, task={"label_smoothing": smoothing})
    assert made.fit is not None
    model, task = made.fit.model, made.task
    batch = task.collate([made.stores["train"][row] for row in range(5)])
    ids = batch.targets["ids"]
    real = torch.zeros(ids.numel(), dtype=torch.bool)
    real[batch.targets["places"]] = True
    labels = ids.masked_fill(~real.view_as(ids), -100)
    with torch.no_grad():
        output = model(**batch.inputs, labels=labels)
        logits = output.logits.flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(logits, labels.flatten(), label_smoothing=smoothing)
        found = task.loss(model, batch)["loss"] / batch.weights["loss"]
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    if not smoothing:
        assert float(found) == pytest.approx(float(output.loss), rel=1e-5)


def test_what_is_learned_is_the_target_and_its_end(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run", task={"prefix": "turn: "})
    task, store = made.task, made.stores["train"]
    for place, row in enumerate(list(made.splits.train)[:5]):
        batch = task.collate([store[place]])
        real = batch.inputs["attention_mask"][0].bool()
        assert task.tokenizer.decode(batch.inputs["input_ids"][0][real]) == f"turn: {row.values['text']}<|endoftext|>"
        assert task.tokenizer.decode(batch.targets["labels"]) == f"{row.values['target']}<|endoftext|>"


def test_the_figures_are_sacrebleus(words_file: Path, tmp_path: Path) -> None:
    import sacrebleu

    task: Any = session(words_file, tmp_path / "run").task
    truth = ["the cat sat on the mat", "a quiet river runs slowly", "stone by stone", "nothing at all is here"]
    answers = ["the cat sat on a mat", "the quiet river runs", "stone by stone", ""]
    plain = {"nats": np.ones(4), "targets": np.ones(4), "answer": _texts(answers), "truth": _texts(truth)}
    found = task.metrics(task.join(plain))
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [truth]).score, rel=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [truth]).score, rel=1e-9)
    signatures = task.figures(task.join({**plain, "source": _texts(truth)}))[-1]["rows"]
    assert "nrefs:1" in signatures[0][1] and "version:2" in signatures[1][1]


def test_rouge_by_hand() -> None:
    task: Any = Summarization(Summarization.Settings(), SimpleNamespace(eos_token_id=1), {})
    records = {
        "nats": np.ones(2), "targets": np.ones(2), "answer": _texts(["the cat sat", "a b c d"]),
        "truth": _texts(["the cat ran", "a c d"]),
    }  # fmt: skip
    found = task.metrics(task.join(records))
    assert found["rouge1"] == pytest.approx((2 / 3 + 6 / 7) / 2, rel=1e-6)
    assert found["rouge2"] == pytest.approx((1 / 2 + 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)) / 2, rel=1e-6)
    assert found["rougeL"] == pytest.approx((2 / 3 + 6 / 7) / 2, rel=1e-6)


def test_it_learns_to_turn_words_around(tmp_path: Path) -> None:
    """Two words change places: what comes out is compared, not only the loss."""
    words = ["river", "stone", "king", "garden", "light", "old"]
    rows = [{"text": f"{a} {b}", "target": f"{b} {a}"} for a in words for b in words if a != b]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = burnish.train(
        "translation",
        terminal=Terminal(quiet=True),
        preset="transformer-nano",
        model={"vocab_size": 300},
        data={"train": str(path), "validation": str(path)},
        train={"length": "220 steps", "batch": 15, "precision": "fp32", "evaluate_every": "220 steps"},
        optim={"lr": 2e-3},
        run={"dir": str(tmp_path / "run"), "threads": 1},
    )
    assert isinstance(run, burnish.Run)
    assert run.metrics["validation"]["chrf"] > 90
    assert run.predict("king river")["answer"] == "river king"
    assert run.predict("king river", beams=3)["answer"] == "river king"
    assert run.predict("king river", stop=["king"])["answer"] == "river"


def test_evaluation_answers_do_not_depend_on_the_batch(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run")
    assert made.fit is not None
    store = made.stores["train"]
    together, alone = (
        score(made.fit.model, made.task, store, batch=size, device="cpu", rows=range(6)) for size in (6, 1)
    )
    assert np.allclose(together["nats"], alone["nats"], rtol=1e-4)
    assert together["truth"].tolist() == alone["truth"].tolist()


def test_an_empty_translation_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "a b", "target": "b a"}\n{"text": "c", "target": " "}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:2: 'target' is empty"):
        session(path, tmp_path / "run")
    path.write_text('{"text": "a b", "other": "b a"}\n')
    with pytest.raises(UserError, match=r"has no column 'target'"):
        session(path, tmp_path / "run")


def test_both_are_registered() -> None:
    assert registry()["translation"] is Translation and registry()["summarization"] is Summarization


def test_a_text_beyond_the_positions_is_cut(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run")
    generate = made.config.generate.model_copy(update={"max_tokens": 2})
    [answer] = made.task.predict(made.fit.model, [{"text": "king " * 2000}], generate, 0)
    assert isinstance(answer["answer"], str)


def test_a_tokenizer_that_ends_no_text_is_refused_before_rows_are_encoded() -> None:
    from types import SimpleNamespace

    with pytest.raises(UserError, match="never end"):
        Translation(Translation.Settings(), SimpleNamespace(eos_token_id=None), {})


DECODER = "gpt2-nano"


def test_a_decoder_learns_the_answer_after_the_text(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run", DECODER, 96, task={"prefix": "turn: "})
    task, store = made.task, made.stores["train"]
    assert made.fit is not None and task.name == "translation" and not made.model_config.is_encoder_decoder
    rows = list(made.splits.train)[:5]
    batch = task.collate([store[place] for place in range(5)])
    for place, row in enumerate(rows):
        own = batch.targets["row"] == place
        assert task.tokenizer.decode(batch.targets["labels"][own]) == f"{row.values['target']}<|endoftext|>"
        read = batch.inputs["input_ids"][place][: batch.lengths[place] if batch.lengths else None]
        assert task.tokenizer.decode(read) == f"turn: {row.values['text']}\n{row.values['target']}"
    model = made.fit.model
    whole = -torch.ones(batch.inputs["input_ids"].numel(), dtype=torch.long) * 100
    whole[batch.targets["places"]] = batch.targets["labels"]
    with torch.no_grad():
        logits = model(**batch.inputs).logits.flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(logits, whole)
        assert float(task.loss(model, batch)["loss"] / batch.weights["loss"]) == pytest.approx(float(wanted), rel=1e-5)


def test_a_decoders_answers_do_not_depend_on_the_batch(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run", DECODER, 96)
    assert made.fit is not None
    together, alone = (
        score(made.fit.model, made.task, made.stores["train"], batch=size, device="cpu", stack=made.fit.stack, rows=range(6))
        for size in (6, 1)
    )  # fmt: skip
    assert np.allclose(together["nats"], alone["nats"], rtol=1e-4)
    assert together["source"].tolist() == [row.values["text"] for row in list(made.splits.train)[:6]]
    given = [{"text": text} for text in together["source"]]
    settings = made.config.generate.model_copy(update={"max_tokens": 24})
    answers = [row["answer"][:20] for row in made.task.predict(made.fit.model, given, settings, 0)]
    assert answers == [text[:20] for text in alone["answer"]]


def test_a_text_too_long_for_a_decoder_is_cut_and_its_answer_stays(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": f"{place} " + "king " * 200, "target": f"river {place}"} for place in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = session(path, tmp_path / "run", DECODER)
    for place in range(5):
        batch = made.task.collate([made.stores["train"][place]])
        assert batch.lengths == [32]
        assert made.task.tokenizer.decode(batch.targets["labels"]).startswith("river ")
    with pytest.raises(UserError, match="leave it too little room"):
        made.task._inputs(["a king"], 4)  # type: ignore


def test_a_decoder_with_a_template_is_asked_by_it(words_file: Path, tmp_path: Path) -> None:
    made = session(words_file, tmp_path / "run", DECODER)
    tokenizer = made.task.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    task: Any = type(made.task)(made.task.settings, tokenizer, {})
    [[example, _]] = list(task.encode([Row({"text": "old king", "target": "king old"}, "here")], 64, training=True))
    assert tokenizer.decode(example["input_ids"]) == "[user]old king<|endoftext|>[assistant]king old<|endoftext|>"
    assert task._sources(task.collate([example])) == ["old king"]


def test_a_decoder_turns_words_around(tmp_path: Path) -> None:
    words = ["river", "stone", "king", "garden", "light", "old"]
    rows = [{"text": f"{a} {b}", "target": f"{b} {a}"} for a in words for b in words if a != b]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = burnish.train(
        "summarization",
        terminal=Terminal(quiet=True),
        preset="gpt2-nano",
        model={"vocab_size": 300},
        data={"train": str(path), "validation": str(path)},
        train={"length": "150 steps", "batch": 15, "precision": "fp32", "sequence": 32, "evaluate_every": "150 steps"},
        optim={"lr": 3e-3},
        run={"dir": str(tmp_path / "run"), "threads": 1},
    )
    assert isinstance(run, burnish.Run)
    assert run.metrics["validation"]["rouge1"] > 0.9 and run.metrics["validation"]["rougeL"] > 0.9
    assert run.predict("king river")["answer"] == "river king"
    assert burnish.load(run.path).evaluate()["metrics"] == pytest.approx(run.metrics["validation"], rel=1e-6)


def test_an_encoder_is_no_decoder(words_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sees later tokens"):
        session(words_file, tmp_path / "run", "bert-nano")
