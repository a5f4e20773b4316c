"""Fill-mask: which tokens are hidden and how, and what is measured, against transformers and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.errors import UserError
from burnish.evaluate.measure import score
from burnish.session import Session
from burnish.terminal import Terminal
from helpers import session_of


def settings(text_file: Path, **more: Any) -> dict[str, Any]:
    return {
        "preset": "bert-nano",
        "model": {"vocab_size": 300},
        "data": str(text_file),
        "train": {"length": "2 steps", "batch": 8, "sequence": 64, "precision": "fp32"},
        "run": {"threads": 1},
        **more,
    }


@pytest.fixture(scope="module")
def session(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("mlm") / "run"
    return session_of("fill-mask", folder, **settings(text_file) | {"run": {"dir": str(folder), "threads": 1}})


def test_fifteen_percent_are_chosen_and_most_of_them_hidden(session: Session) -> None:
    task, store = session.task, session.stores["train"]
    chosen = hidden = kept = replaced = usable = 0
    special = set(task.tokenizer.all_special_ids)
    for row in range(len(store)):
        for draw in range(20):
            example = task.vary(store[row], draw * 1000 + row)
            plain, ids, places = store[row]["input_ids"], example["input_ids"], example["places"]
            assert np.array_equal(np.delete(plain, places), np.delete(ids, places))
            assert np.array_equal(plain[places], example["labels"]) and not special & set(plain[places].tolist())
            usable += sum(int(token) not in special for token in plain)
            chosen += len(places)
            hidden += int((ids[places] == task.tokenizer.mask_token_id).sum())
            kept += int((ids[places] == plain[places]).sum())
    replaced = chosen - hidden - kept
    assert chosen / usable == pytest.approx(0.15, abs=0.005)
    assert hidden / chosen == pytest.approx(0.8, abs=0.02)
    assert replaced / chosen == pytest.approx(0.1, abs=0.02)


def test_more_are_chosen_in_training_if_asked_and_no_more_in_evaluations(text_file: Path, tmp_path: Path) -> None:
    found = []
    for share in (0.15, 0.4):
        run = {"run": {"dir": str(tmp_path / str(share)), "threads": 1}}
        made = session_of("fill-mask", tmp_path / str(share), **settings(text_file) | {"task": {"masked": share}} | run)
        rows = [made.stores["train"][row] for row in range(len(made.stores["train"]))]
        trained = sum(len(made.task.vary(row, 7)["places"]) for row in rows) / sum(
            len(row["input_ids"]) - 2 for row in rows
        )
        assert trained == pytest.approx(share, abs=0.02)
        found.append(made.task.collate(rows).targets["places"].tolist())
    assert found[0] == found[1]


def test_the_choice_follows_from_the_draw_alone(session: Session) -> None:
    example = session.stores["train"][0]
    first, again, other = (session.task.vary(example, draw) for draw in (7, 7, 8))
    assert np.array_equal(first["input_ids"], again["input_ids"])
    assert not np.array_equal(first["places"], other["places"])
    session.join()
    steps = {tuple(batch.inputs["input_ids"].flatten().tolist()) for batch in session.job.loader.step(0)}
    assert steps == {tuple(batch.inputs["input_ids"].flatten().tolist()) for batch in session.job.loader.step(0)}


def test_each_epoch_hides_other_tokens(session: Session) -> None:
    from burnish.data.order import draw

    example = session.stores["train"][0]
    places = {tuple(session.task.vary(example, draw(0, epoch, 0))["places"].tolist()) for epoch in range(4)}
    assert len(places) == 4


def test_whole_words_are_hidden_whole(text_file: Path, tmp_path: Path) -> None:
    given = settings(text_file, task={"whole_words": True}, run={"dir": str(tmp_path / "run"), "threads": 1})
    session = session_of("fill-mask", tmp_path / "run", **given)
    split = 0
    for row in range(10):
        example = session.stores["train"][row]
        word = np.cumsum(example["starts"].astype(int))
        places = session.task.vary(example, row)["places"]
        chosen = set(places.tolist())
        for number in set(word[places].tolist()):
            whole = set(np.flatnonzero(word == number).tolist())
            assert whole <= chosen
            split += len(whole) > 1
    assert split > 5


def test_the_loss_is_transformers(session: Session) -> None:
    batch = session.task.collate([session.stores["train"][row] for row in range(4)])
    assert session.fit is not None
    model = session.fit.model.eval()
    rows, longest = batch.inputs["input_ids"].shape
    labels = torch.full((rows * longest,), -100)
    labels[batch.targets["places"]] = batch.targets["labels"]
    with torch.no_grad():
        theirs = model(**batch.inputs, labels=labels.view(rows, longest)).loss
        ours = session.task.loss(model, batch)["loss"] / batch.weights["loss"]
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_pseudo_perplexity_hides_each_token_alone(text_file: Path, tmp_path: Path) -> None:
    given = settings(text_file, task={"pseudo_perplexity": True}, run={"dir": str(tmp_path / "run"), "threads": 1})
    session = session_of("fill-mask", tmp_path / "run", **given)
    assert session.fit is not None
    model, store = session.fit.model, session.stores["train"]
    records = score(model, session.task, store, batch=3, device="cpu", rows=[0, 1, 2])
    special, total, count = set(session.task.tokenizer.all_special_ids), 0.0, 0
    for row in range(3):
        ids = torch.from_numpy(store[row]["input_ids"].astype(np.int64))[None]
        for place in range(ids.shape[1]):
            if int(ids[0, place]) not in special:
                hidden = ids.clone()
                hidden[0, place] = session.task.tokenizer.mask_token_id
                with torch.no_grad():
                    total -= float(model(input_ids=hidden).logits[0, place].log_softmax(-1)[ids[0, place]])
                count += 1
    assert session.task.metrics(records)["pseudo_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_hidden_words_are_filled_in(text_file: Path, tmp_path: Path) -> None:
    given = settings(text_file, run={"dir": str(tmp_path / "run"), "threads": 1})
    given["train"] |= {"length": "60 steps"}
    run = burnish.train("fill-mask", terminal=Terminal(quiet=True), optim={"lr": 3e-3}, **given)
    assert isinstance(run, burnish.Run)
    answer = run.predict("The old [MASK] runs under the [MASK].")
    assert [len(fills) for fills in answer["fills"]] == [5, 5]
    assert all(0 < fill["score"] < 1 for fills in answer["fills"] for fill in fills)
    with pytest.raises(UserError, match=r"'nothing to fill': nothing is hidden; write <mask> for a word"):
        run.predict("nothing to fill")


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, text_file: Path) -> None:
    base = burnish.train(
        "text-generation",
        terminal=Terminal(quiet=True),
        **settings(text_file, preset="gpt2-nano", run={"dir": str(tmp_path / "gpt"), "threads": 1}),
    )
    assert isinstance(base, burnish.Run)
    with pytest.raises(UserError, match="it has no mask token, so nothing can be hidden"):
        burnish.train(
            "fill-mask",
            terminal=Terminal(quiet=True),
            model=str(base.path / "model"),
            data=str(text_file),
            run={"dir": str(tmp_path / "x")},
        )


def test_a_text_beyond_the_positions_is_refused_by_its_size(text_file: Path, tmp_path: Path) -> None:
    made = session_of("fill-mask", tmp_path / "run", **settings(text_file))
    with pytest.raises(UserError, match=r"tokens, and the model 256 positions\. Give a shorter text"):
        made.task.predict(made.fit.model, [{"text": "<mask>" + " king" * 300}], made.config.generate, 0)


def test_a_hidden_word_takes_the_blank_before_it(tmp_path: Path) -> None:
    """As when the model learns: the blank belongs to the token that is hidden."""
    from burnish.data.tokenizer import train_tokenizer
    from burnish.tasks.masked_lm import FillMask

    tokenizer = train_tokenizer(tmp_path / "tokenizer", ["The old king runs."] * 50, 300, FillMask.special_tokens)
    hidden, whole = (tokenizer(text)["input_ids"] for text in ("The old <mask> runs.", "The old king runs."))
    assert [a for a, b in zip(hidden, whole, strict=True) if a != b] == [tokenizer.mask_token_id]
