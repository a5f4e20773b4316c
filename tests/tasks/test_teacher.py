"""Learning from a teacher: what is asked of it, the loss by its formula, however a step is cut, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import burnish
from burnish.data.loader import collate
from burnish.engine.step import accumulate
from burnish.errors import UserError
from burnish.session import Session
from burnish.terminal import Terminal
from helpers import sentiment_rows, session_of

CLASSIFY, GENERATE = "text-classification", "text-generation"


@pytest.fixture(scope="module")
def classifier(reviews_file: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells positive from negative."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    burnish.train(
        CLASSIFY, terminal=Terminal(quiet=True), model=str(tiny_bert), data=str(reviews_file), optim={"lr": 5e-3},
        train={"length": "80 steps", "batch": 16, "precision": "fp32"}, run={"dir": str(folder)},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def writer(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes text."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    burnish.train(
        GENERATE, terminal=Terminal(quiet=True), preset="gpt2-nano", model={"vocab_size": 300}, data=str(text_file),
        train={"length": "10 steps", "batch": 8, "sequence": 32, "precision": "fp32"}, optim={"lr": 3e-3},
        run={"dir": str(folder)}, generate={"max_tokens": 2},
    )  # fmt: skip
    return folder


def student_classifier(reviews_file: Path, tiny_bert: Path, folder: Path, teacher: Path, **task: Any) -> Session:
    given: dict[str, Any] = {
        "task": {"teacher": str(teacher), **task},
        "model": str(tiny_bert),
        "data": str(reviews_file),
    }
    session = session_of(CLASSIFY, folder, **given, train={"batch": 8, "precision": "fp32", "dropout": 0})
    session.join()
    return session


def student_writer(text_file: Path, folder: Path, teacher: Path, **task: Any) -> Session:
    given: dict[str, Any] = {"task": {"teacher": str(teacher), **task}, "data": str(text_file)}
    given["model"] = {"preset": "gpt2-nano", "vocab_size": 300, "tokenizer": str(teacher / "model")}
    session = session_of(GENERATE, folder, **given, train={"batch": 8, "sequence": 32, "precision": "fp32"})
    session.join()
    return session


def teacher_model(auto_class: str, folder: Path) -> Any:
    import transformers

    return getattr(transformers, auto_class).from_pretrained(str(folder / "model")).eval()


def test_a_classifier_learns_labels_and_the_teachers_logits(
    reviews_file: Path, tiny_bert: Path, classifier: Path, tmp_path: Path
) -> None:
    session = student_classifier(
        reviews_file, tiny_bert, tmp_path / "run", classifier, teacher_weight=0.7, teacher_temperature=3.0
    )
    batch = collate(session.stores["train"], session.task, list(range(12)))
    with torch.no_grad():
        wanted = teacher_model("AutoModelForSequenceClassification", classifier)(**batch.inputs).logits
        logits = session.job.model.eval()(**batch.inputs).logits
        found = session.task.loss(session.job.model, batch)
    assert torch.allclose(batch.targets["remembered"], wanted, rtol=1e-4, atol=1e-5)
    own = 0.3 * cross_entropy(logits, batch.targets["labels"], reduction="sum")
    soft = kl_div((logits / 3).log_softmax(-1), (wanted / 3).softmax(-1), reduction="sum")
    assert float(found["loss"]) == pytest.approx(float(own), rel=1e-5)
    assert float(found["teacher"]) == pytest.approx(0.7 * 9 * float(soft), rel=1e-4)
    assert batch.weights == {"loss": 12.0, "teacher": 12.0}
    assert session.stores["validation"].remembered is None  # nobody reads what it would say of these


def test_a_teacher_may_have_its_labels_in_another_order(
    reviews_file: Path, tiny_bert: Path, classifier: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned"
    model = teacher_model("AutoModelForSequenceClassification", classifier)
    with torch.no_grad():
        for value in (model.classifier.weight, model.classifier.bias):
            value.copy_(value.flip(0))
    model.config.id2label = {0: "positive", 1: "negative"}
    model.config.label2id = {"positive": 0, "negative": 1}
    shutil.copytree(classifier / "model", turned)
    model.save_pretrained(str(turned))
    kept = []
    for name, teacher in (("one", classifier), ("two", turned)):
        store = student_classifier(reviews_file, tiny_bert, tmp_path / name, teacher).stores["train"]
        kept.append(torch.tensor([store[row]["remembered"][0].tolist() for row in range(10)]))
    assert torch.allclose(*kept, atol=1e-5) and not torch.allclose(kept[0], kept[0].flip(1), atol=1e-2)


@pytest.mark.parametrize("top", [4, 300])
def test_a_writer_learns_tokens_and_the_teachers_likeliest(
    text_file: Path, writer: Path, tmp_path: Path, top: int
) -> None:
    """With all of the vocabulary kept it is the divergence of both; with less, less than that."""
    session = student_writer(text_file, tmp_path / "run", writer, teacher_top=top, teacher_weight=0.5)
    batch = collate(session.stores["train"], session.task, [0, 1, 2, 3])
    places = batch.targets["places"]
    with torch.no_grad():
        teacher, student = (
            model(**batch.inputs).logits.flatten(0, 1)[places]
            for model in (teacher_model("AutoModelForCausalLM", writer), session.job.model.eval())
        )
        found = session.task.loss(session.job.model, batch)
    soft = 4 * float(kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="sum"))
    assert batch.targets["remembered"].shape == (len(places), 2 * top + 1)
    assert float(found["loss"]) == pytest.approx(
        0.5 * float(cross_entropy(student, batch.targets["labels"], reduction="sum")), rel=1e-5
    )
    if top == 300:
        assert float(found["teacher"]) == pytest.approx(0.5 * soft, rel=1e-3)
    else:
        assert 0.05 * soft < float(found["teacher"]) < 0.49 * soft


@pytest.mark.parametrize("task", [CLASSIFY, GENERATE])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    reviews_file: Path, text_file: Path, tiny_bert: Path, classifier: Path, writer: Path, tmp_path: Path, task: str
) -> None:
    """Both terms, each with its own weight: rows that count differently have a mean of their own."""
    if task == CLASSIFY:
        session = student_classifier(reviews_file, tiny_bert, tmp_path / "run", classifier, class_weights="balanced")
    else:
        session = student_writer(text_file, tmp_path / "run", writer)
    store, job = session.stores["train"], session.job
    rows = sorted(range(len(store)), key=store.length)[:3] + list(range(10, 15))
    gradients = []
    for sizes in ([8], [1, 7], [3, 5], [1] * 8):
        edges = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
        batches = [collate(store, session.task, rows[a:b]) for a, b in itertools.pairwise(edges)]
        job.weights.forget_gradients()
        accumulate(job.model, job.stack, session.task, batches, "cpu", 0)
        gradients.append(torch.cat([value.grad.flatten() for value in job.weights.trained() if value.grad is not None]))
    for found in gradients[1:]:
        assert float((found - gradients[0]).norm() / gradients[0].norm()) <= 1e-5


def test_a_student_needs_its_teacher_no_more(
    reviews_file: Path, tiny_bert: Path, classifier: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(classifier / "model", teacher)
    run = burnish.train(
        CLASSIFY, terminal=Terminal(quiet=True), model=str(tiny_bert), data=str(reviews_file), optim={"lr": 5e-3},
        task={"teacher": str(teacher)}, train={"length": "80 steps", "batch": 16, "precision": "fp32"},
        run={"dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert isinstance(run, burnish.Run) and run.metrics["validation"]["accuracy"] > 0.8
    assert next(line["targets"] for line in run.history if "targets" in line) == 16
    shutil.rmtree(teacher)
    assert run.evaluate()["metrics"] == pytest.approx(run.metrics["validation"], rel=1e-6)
    assert run.predict("the good old king")["label"] == "positive"


def test_teachers_that_do_not_fit_are_refused(
    reviews_file: Path, text_file: Path, tiny_bert: Path, classifier: Path, writer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^task.teacher: .* has other tokens than the run's model"):
        student_classifier(reviews_file, tiny_bert, tmp_path / "run", writer)
    with pytest.raises(UserError, match=r"^task.teacher: .*tiny-bert has no trained layer for text-classification"):
        student_classifier(reviews_file, tiny_bert, tmp_path / "run", tiny_bert)
    other = tmp_path / "other.csv"
    with open(other, "w", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *((text, label[:3]) for text, label in sentiment_rows(40))])
    with pytest.raises(
        UserError, match=r"^task.teacher: its labels are negative, positive, those of the rows neg, pos"
    ):
        student_classifier(other, tiny_bert, tmp_path / "run", classifier)
    several = tmp_path / "several.jsonl"
    several.write_text(
        "".join(json.dumps({"text": text, "label": [label]}) + "\n" for text, label in sentiment_rows(40))
    )
    with pytest.raises(UserError, match=r"^task.teacher: a teacher teaches one label a row"):
        student_classifier(several, tiny_bert, tmp_path / "run", classifier)
