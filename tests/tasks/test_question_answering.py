"""Question answering: windows, spans and scores by hand, what is read, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.data.loader import collate
from burnish.data.store import Store
from burnish.data.tokenizer import load_tokenizer, train_tokenizer
from burnish.engine.step import accumulate
from burnish.errors import UserError
from burnish.evaluate.measure import intervals, score
from burnish.task import Row
from burnish.tasks.question_answering import (
    QuestionAnswering,
    QuestionAnsweringSettings,
    best_spans,
    best_threshold,
    judge,
)
from burnish.terminal import Terminal
from helpers import ROOT, said_by_card, session_of, squad
from helpers import burnish as command

QUIET = Terminal(quiet=True)
SETTINGS = QuestionAnsweringSettings(stride=4)


def row_of(context: str, answers: Any, question: str = "who?") -> Row:
    return Row({"context": context, "question": question, "answers": answers}, "rows.json:7")


def answer(text: str, *starts: int) -> dict[str, list]:
    return {"text": [text] * len(starts), "answer_start": list(starts)}


def test_answers_are_judged_as_by_the_official_script() -> None:
    """Cases worked out by hand from evaluate-v2.0.py."""
    cases: list[tuple[str, list[str], tuple[float, float]]] = [
        ("The King", ["king."], (1, 1)),
        ("old king", ["the old king of the river", "king old"], (0, 1)),
        ("the a an", ["An"], (1, 1)),  # a true answer with nothing left counts as none
        ("king king", ["king"], (0, 2 / 3)),
        ("a.b", ["ab"], (1, 1)),
        ("king", [], (0, 0)),
        ("", [], (1, 1)),
        ("", ["king"], (0, 0)),
        ("queen", ["king"], (0, 0)),
    ]
    for given, wanted, judged in cases:
        assert judge(given, wanted) == pytest.approx(judged), (given, wanted)


def test_answers_are_judged_as_by_torchmetrics() -> None:
    """For true answers that are not only articles and signs, which SQuAD's second script leaves out."""
    from torchmetrics.functional.text import squad as official

    draw = random.Random(0)
    words = ["the", "a", "an", "King", "king,", "old's", "river.", "a-b", "Old", "—", "x"]
    for _ in range(300):
        truths = [" ".join(["stone", *draw.choices(words, k=draw.randint(0, 3))]) for _ in range(draw.randint(1, 3))]
        given = " ".join(draw.choices([*words, "stone"], k=draw.randint(1, 4)))
        target = {"id": "1", "answers": {"answer_start": [0] * len(truths), "text": truths}}
        wanted = official([{"prediction_text": given, "id": "1"}], [target])
        found = judge(given, truths)
        assert found == pytest.approx((float(wanted["exact_match"]) / 100, float(wanted["f1"]) / 100)), (given, truths)


def test_best_spans_are_the_best_of_all() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 2, 17, generator=draw)
    logits[:, :, :5] = -torch.inf
    for longest in (1, 4, 50):
        scores, starts, ends = best_spans(logits, longest)
        for row in range(20):
            pairs = [(i, j) for i in range(17) for j in range(i, min(17, i + longest))]
            best = max(pairs, key=lambda pair: float(logits[row, 0, pair[0]] + logits[row, 1, pair[1]]))
            assert (int(starts[row]), int(ends[row])) == best
            assert float(scores[row]) == float(logits[row, 0, best[0]] + logits[row, 1, best[1]])


def test_the_threshold_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        margin, f1, none = draw.integers(-3, 4, 12), draw.random(12), draw.integers(0, 2, 12)
        threshold = best_threshold(margin.astype(float), f1, none)
        tried = [np.where(margin > edge, none, f1).mean() for edge in [-9, threshold, *np.unique(margin)]]
        assert tried[1] == pytest.approx(max(tried))


@pytest.fixture
def bert(tiny_bert: Path) -> QuestionAnswering:
    return QuestionAnswering(SETTINGS, load_tokenizer(tiny_bert), {"unanswerable": True})


def words_at(task: QuestionAnswering, example: dict) -> str:
    start, end = example["target"].tolist()
    return task.tokenizer.decode(example["input_ids"][start : end + 1]).strip()


def test_windows_overlap_and_each_knows_whether_the_answer_is_in_it(bert: QuestionAnswering) -> None:
    context = " ".join(["the river runs"] * 8 + ["old king"])
    start = context.index("old king")
    examples = [e for e, _ in bert.encode([row_of(context, answer("old king", start))], 20, training=False)]
    # 20 positions less [CLS] who ? [SEP] [SEP] are 15 for the context's 26 words; each window shares 4 with the next
    assert [len(example["starts"]) for example in examples] == [15, 15]
    assert [example["target"].tolist() for example in examples] == [[0, 0], [17, 18]]
    assert words_at(bert, examples[1]) == "old king"
    first, second = ({int(s) for s in example["starts"]} for example in examples)
    assert len(first & second) == 4 and len(first | second) == 26
    assert examples[1]["token_type_ids"].sum() == 16 and not {"row", "starts"} & {
        *next(bert.encode([row_of(context, [])], 20, training=True))[0]
    }


def test_byte_level_tokenizers_give_places(tmp_path: Path) -> None:
    special = QuestionAnswering.special_tokens
    tokenizer = train_tokenizer(tmp_path / "bytes", ["the old king sees a river " * 50], 300, special)
    task = QuestionAnswering(SETTINGS, tokenizer, {"unanswerable": True})
    context = "the old — king sees\n a river"
    for text in ("king sees", "the", "river"):
        row = row_of(context, answer(text, context.index(text)))
        [(example, _)] = task.encode([row], 64, training=True)
        assert words_at(task, example) == text


def test_questions_and_sequences_that_leave_no_room_are_refused(bert: QuestionAnswering) -> None:
    """A question that was cut would be another one."""
    ten = row_of("the river runs", [], "who is the old king " * 2)
    assert len(list(bert.encode([ten], 21, training=True))) == 1
    with pytest.raises(
        UserError, match=r"rows.json:7: the question has 10 tokens, more than half of a sequence of 19\."
    ):
        list(bert.encode([ten], 19, training=True))
    with pytest.raises(UserError, match=r"train.sequence: 20 leaves no room for a context; give at least 21\."):
        list(bert.encode([ten], 20, training=True))


class Pointing(torch.nn.Module):
    """A model that points at given token ids as start and end, and gives position 0 a score of its own."""

    def __init__(self, start: int, end: int, none: float):
        super().__init__()
        self.start, self.end, self.none = start, end, none

    def forward(self, input_ids: torch.Tensor, **_: object):
        start, end = 5.0 * (input_ids == self.start), 5.0 * (input_ids == self.end)
        start[:, 0] = end[:, 0] = self.none
        return type("Output", (), {"start_logits": start, "end_logits": end})


def records_of(task: QuestionAnswering, model: Any, rows: list[Row], folder: Path) -> dict[str, np.ndarray]:
    store = Store.build(folder, task.encode(rows, 20, training=False))
    return score(model, task, store, batch=3, device="cpu")


def test_windows_are_joined_and_metrics_are_those_by_hand(bert: QuestionAnswering, tmp_path: Path) -> None:
    """Found is 'old king' where it is, in the second window too; else some piece with a low score."""
    number = bert.tokenizer.convert_tokens_to_ids
    far = " ".join(["the river runs"] * 8 + ["old king"])
    rows = [
        row_of(far, answer("old king", far.index("old king"))),
        row_of("the old king sees", answer("king", 8)),
        row_of("quiet green garden", []),
    ]
    model = Pointing(number("old"), number("king"), none=2.0)
    records = records_of(bert, model, rows, tmp_path / "store")
    assert records["text"][:2].tolist() == ["old king", "old king"] and records["windows"].tolist() == [2, 1, 1]
    assert records["margin"].tolist() == [4.0 - 10.0, 4.0 - 10.0, 4.0 - 0.0]
    metrics = bert.metrics(records)
    assert metrics["exact_match"] == pytest.approx(2 / 3)
    assert metrics["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert bert.decide(records) == {"threshold": -1.0}
    answerable = QuestionAnswering(SETTINGS, bert.tokenizer, {"unanswerable": False})
    assert answerable.metrics(records)["exact_match"] == pytest.approx(1 / 3) and answerable.decide(records) == {}
    [table] = bert.figures(records)
    assert [row[:3] for row in table["rows"]] == [
        ["who?", "old king", "old king"], ["who?", "old king", "king"], ["who?", "–", "–"]
    ]  # fmt: skip
    low, high = intervals(bert, records)["f1"]
    assert low <= metrics["f1"] <= high

    some = score(model, bert, Store(tmp_path / "store"), batch=3, device="cpu", rows=[0, 3])
    assert some["question"].tolist() == [0, 2] and some["windows"].tolist() == [1, 1]


def test_the_loss_is_that_of_transformers(bert: QuestionAnswering, tiny_bert: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_bert).eval().requires_grad_(False)
    rows = [
        row_of("the old king sees a river", answer("old king", 4)),
        row_of("a river", []),
        row_of("stone king", answer("king", 6)),
    ]
    examples = [example for example, _ in bert.encode(rows, 20, training=True)]
    total = sum(
        float(
            model(
                input_ids=torch.tensor(e["input_ids"][None]),
                token_type_ids=torch.tensor(e["token_type_ids"][None]),
                start_positions=torch.tensor(e["target"][:1]),
                end_positions=torch.tensor(e["target"][1:]),
            ).loss
        )
        for e in examples
    )
    batch = bert.collate(examples)
    assert float(bert.loss(model, batch)["loss"]) == pytest.approx(total, rel=1e-5)
    assert batch.weights == {"loss": 3.0}


def test_the_gradient_does_not_depend_on_the_arrangement(tmp_path: Path, questions_file: Path, tiny_bert: Path) -> None:
    """Padded or end to end, at once or in parts: one gradient."""
    found = []
    for packing, micro in (("auto", 16), ("auto", 5), ("off", 16), ("off", 5)):
        session = session_of(
            "question-answering",
            tmp_path / f"{packing}{micro}",
            model=str(tiny_bert),
            data=str(questions_file),
            train={"packing": packing, "precision": "fp32", "dropout": 0.0, "sequence": 24},
        )
        session.join()
        job = session.job
        batches = [
            collate(session.stores["train"], session.task, list(range(16))[start : start + micro])
            for start in range(0, 16, micro)
        ]
        assert session.plan.arrangement == ("packed" if packing == "auto" else "padded")
        accumulate(job.model, job.stack, session.task, batches, "cpu", 0)
        found.append(torch.cat([p.grad.flatten() for p in job.model.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-4, atol=1e-6)


def test_a_trained_model_answers_from_long_contexts_and_knows_when_not_to(
    tmp_path: Path, questions_file: Path, tiny_bert: Path
) -> None:
    run = burnish.train(
        "question-answering",
        terminal=QUIET,
        model=str(tiny_bert),
        data=str(questions_file),
        run={"dir": str(tmp_path / "run")},
        train={"length": "30 epochs", "precision": "fp32", "batch": 16, "evaluate_every": "15 epochs"},
        optim={"lr": 5e-3},
    )
    assert run.metrics["validation"]["f1"] > 0.9 and "threshold" in run.metrics["decided"]
    context = "the old stone never sees a river " * 20 + "and a great king"
    answers = run.predict(
        [
            {"question": "Was the king good?", "context": context},
            {"question": "Was the king good?", "context": "the old stone sees a river"},
        ]
    )
    assert said_by_card(run.path)
    start = context.index("great")
    assert [(a["answer"], a["start"], a["end"]) for a in answers] == [("great", start, start + 5), ("", 0, 0)]
    assert all(0 < a["score"] <= 1 and a["question"] == "Was the king good?" for a in answers)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (answer("queen", 4), "rows.json:7: the answer 'queen' does not stand at character 4 of the context 'the king sees the king', which has it nowhere."),
        (answer("king", 5), "rows.json:7: the answer 'king' does not stand at character 5 of the context 'the king sees the king', which has it 2 times elsewhere."),
        ({"text": ["king"]}, 'rows.json:7: the answers are not lists: {"text": [...], "answer_start": [...]}.'),
        ({"text": ["king", "the"], "answer_start": [4]}, "rows.json:7: has 2 answers but 1 starts; each answer needs one."),
        ([{"text": "king"}], "rows.json:7: the answer 'king' has no answer_start, its first character in the context."),
        ([{"text": "", "answer_start": 0}], "rows.json:7: the answer '' is no text; leave it out where there is no answer."),
        ("king", 'rows.json:7: the answers are str; give {"text": [...], "answer_start": [...]} or a list of {"text": ..., "answer_start": ...}.'),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(bert: QuestionAnswering, answers: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        list(bert.encode([row_of("the king sees the king", answers)], 20, training=True))
    assert str(caught.value) == message


def test_an_answer_that_stands_once_elsewhere_is_found_there(bert: QuestionAnswering) -> None:
    for answers in (
        answer("old king", 0),
        [{"text": "queen", "answer_start": 1}, {"text": "old king", "answer_start": 4}],
    ):
        [(example, _)] = bert.encode([row_of("the old king sees", answers)], 20, training=True)
        assert words_at(bert, example) == "old king"


def test_rows_without_any_answer_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.answers: no training row has an answer\."):
        QuestionAnswering.learn([row_of("a king", [])], SETTINGS)


def test_the_recipe_plans_its_run(tmp_path: Path, assets: dict[str, Path]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(squad(40)))
    (tmp_path / ".assets").symlink_to(assets["minilm"].parent)
    data = ["--data.train", "a.json", "--data.test", "b.json"]
    done = command("train", ROOT / "recipes" / "minilm-squad.yaml", *data, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
