"""Token classification: entities by hand, words found in tokens, figures, errors."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

import burnish
from burnish.config import GenerateSettings
from burnish.data.loader import collate
from burnish.data.tokenizer import load_tokenizer, train_tokenizer
from burnish.engine.step import accumulate
from burnish.errors import UserError
from burnish.evaluate.measure import score
from burnish.inference import Opened
from burnish.task import Row
from burnish.tasks.token_classification import TokenClassification, TokenClassificationSettings, best_tags, entities
from burnish.terminal import Terminal
from helpers import said_by_card, session_of

QUIET = Terminal(quiet=True)
SETTINGS = TokenClassificationSettings()
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def rows_of(*pairs: tuple) -> list[Row]:
    return [Row({"tokens": tokens, "tags": tags}, f"names.jsonl:{n}") for n, (tokens, tags) in enumerate(pairs, 1)]


def test_entities_are_those_of_conlleval() -> None:
    cases = {
        "O O": [],
        "B-PER O": [("PER", 0, 1)],
        "B-PER B-PER": [("PER", 0, 1), ("PER", 1, 2)],
        "B-PER I-PER I-LOC": [("PER", 0, 2), ("LOC", 2, 3)],
        "I-PER I-PER O I-PER": [("PER", 0, 2), ("PER", 3, 4)],
        "B-LOC I-PER B-LOC I-LOC": [("LOC", 0, 1), ("PER", 1, 2), ("LOC", 2, 4)],
        "O B-a-b I-a-b": [("a-b", 1, 3)],
    }
    for tags, wanted in cases.items():
        assert entities(tags.split()) == wanted, tags


class Fixed(torch.nn.Module):
    """A model that gives each token id a tag, sure of it."""

    def __init__(self, tags: dict[int, int], labels: int):
        super().__init__()
        self.tags, self.labels = tags, labels

    def forward(self, input_ids: torch.Tensor, **_: object):
        wanted = torch.tensor([[self.tags.get(int(i), 0) for i in row] for row in input_ids])
        return type("Output", (), {"logits": 10 * torch.nn.functional.one_hot(wanted, self.labels).float()})


def test_metrics_by_hand(tiny_bert: Path) -> None:
    """True: PER(old king), LOC(river), LOC(garden). Found: PER(king), LOC(river), PER(stone): one of three, of three."""
    tokenizer = load_tokenizer(tiny_bert)
    task = TokenClassification(SETTINGS, tokenizer, {"labels": LABELS})
    rows = rows_of(
        (["old", "king", "sees", "river"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["stone", "garden"], ["O", "B-LOC"]),
    )
    number = tokenizer.convert_tokens_to_ids
    model = Fixed({number("king"): 4, number("river"): 1, number("stone"): 3}, len(LABELS))
    batch = task.collate([example for example, _ in task.encode(rows, 16, training=False)])
    records = task.score(model, batch)
    metrics = task.metrics(records)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert metrics["accuracy"] == pytest.approx(3 / 6)
    [table] = task.figures(records)
    assert table["rows"] == [["LOC", 2, 1, 1.0, 0.5, 2 / 3], ["PER", 1, 2, 0.0, 0.0, 0.0]]
    assert metrics["loss"] == pytest.approx(float(task.loss(model, batch)["loss"]) / batch.weights["loss"])


def test_words_that_do_not_fit_count_as_missed(tiny_bert: Path) -> None:
    task = TokenClassification(SETTINGS, load_tokenizer(tiny_bert), {"labels": LABELS})
    [(example, _)] = task.encode(rows_of((["king"] * 9, ["O"] * 8 + ["B-PER"])), 6, training=False)
    assert example["first"].tolist() == [1, 2, 3, 4, -1, -1, -1, -1, -1]
    records = task.score(Fixed({}, len(LABELS)), task.collate([example]))
    assert records["there"].sum() == 1 and records["words"].tolist() == [9] and records["targets"].tolist() == [4]
    assert task.metrics(records)["accuracy"] == pytest.approx(4 / 9)


def test_words_are_found_in_tokens_of_every_kind(tiny_bert: Path, tmp_path: Path) -> None:
    """A byte-level tokenizer has the blank in the word; WordPiece cuts words; signs and blanks may have no token."""
    from transformers import BertTokenizerFast

    words = ["The", "kings'", "garden", "🙂", "\u200d", "new-old"]
    byte_level = train_tokenizer(tmp_path / "bytes", ["the kings garden new old " * 50], 280)
    pieces = BertTokenizerFast(
        vocab={
            w: i
            for i, w in enumerate(
                [
                    "[PAD]",
                    "[UNK]",
                    "[CLS]",
                    "[SEP]",
                    "[MASK]",
                    "the",
                    "king",
                    "##s",
                    "'",
                    "gar",
                    "##den",
                    "new",
                    "-",
                    "old",
                ]
            )
        }
    )
    for tokenizer in (byte_level, pieces):
        task = TokenClassification(SETTINGS, tokenizer, {"labels": LABELS})
        [example] = task._inputs([words], 100)
        first = example["first"]
        assert (np.diff(first[first >= 0]) > 0).all()
        starts = [tokenizer.decode([example["input_ids"][place]]).strip().lower() for place in first[:3]]
        assert all(word.lower().startswith(start) and start for word, start in zip(words, starts, strict=False))
    assert first[4] == -1 and tokenizer.convert_ids_to_tokens(int(example["input_ids"][first[5]])) == "new"


def test_plain_tags_count_word_by_word(tiny_bert: Path) -> None:
    rows = rows_of((["old", "king"], ["adjective", "noun"]), (["runs"], [3]))
    facts = TokenClassification.learn(rows, SETTINGS)
    assert facts == {"labels": ["3", "adjective", "noun"], "strict": False}
    task = TokenClassification(SETTINGS, load_tokenizer(tiny_bert), facts)
    batch = task.collate([example for example, _ in task.encode(rows, 16, training=False)])
    metrics = task.metrics(task.score(Fixed({}, 3), batch))
    assert metrics["f1"] == metrics["accuracy"] == pytest.approx(1 / 3)


def test_learn_adds_what_may_follow() -> None:
    rows = rows_of((["a"], ["B-PER"]), (["b"], ["B-LOC"]))
    assert TokenClassification.learn(rows, SETTINGS) == {"labels": LABELS, "strict": True}


def test_tags_follow_each_other_as_in_training() -> None:
    """The best of all sequences that are allowed; where training has I- after something else, any is."""
    rows = {"B-PER I-PER O B-LOC": True, "O I-PER B-LOC": False, "I-PER O B-LOC": False, "B-PER I-LOC": False}
    for tags, strict in rows.items():
        row = rows_of((tags.split(), tags.split()))
        assert TokenClassification.learn(row, SETTINGS)["strict"] is strict, tags
    draw = np.random.default_rng(0)
    allowed = np.array([[b[0] != "I" or a[2:] == b[2:] for b in LABELS] for a in LABELS])
    for words in (1, 2, 4):
        for before in range(len(LABELS)):
            scores = draw.normal(size=(words, len(LABELS)))
            ways = [w for w in product(range(len(LABELS)), repeat=words) if allowed[[before, *w[:-1]], [*w]].all()]
            wanted = max(ways, key=lambda way: scores[np.arange(words), [*way]].sum())
            assert best_tags(scores, allowed, before).tolist() == [*wanted]
            assert (best_tags(scores, None, before) == scores.argmax(-1)).all()
    assert best_tags(np.zeros((0, len(LABELS))), allowed).tolist() == []


class Leaning(Fixed):
    """A model that gives each token id scores; it has six positions."""

    config, device = BertConfig(max_position_embeddings=6), "cpu"

    def __init__(self, scores: dict[int, list[float]]):
        super().__init__({}, len(LABELS))
        self.scores = scores

    def forward(self, input_ids: torch.Tensor, **_: object):
        nothing = [0.0] * len(LABELS)
        return type(
            "Output", (), {"logits": torch.tensor([[self.scores.get(int(i), nothing) for i in r] for r in input_ids])}
        )


def test_answers_are_iob2_where_training_was(tiny_bert: Path) -> None:
    """A little surer of I-LOC after B-PER, but that is neither; in an answer given in pieces as well."""
    tokenizer = load_tokenizer(tiny_bert)
    number = tokenizer.convert_tokens_to_ids
    model = Leaning({number("old"): [0, 0, 0, 5, 0], number("king"): [0, 0, 5, 0, 4], number("sees"): [3, 0, 0, 0, 0]})
    rows = rows_of((["old", "king", "sees"], ["B-PER", "I-PER", "O"]), (["old"], ["B-PER"]))
    figures, answers = {}, {}
    for strict in (False, True):
        task = TokenClassification(SETTINGS, tokenizer, {"labels": LABELS, "strict": strict})
        records = task.score(model, task.collate([example for example, _ in task.encode(rows, 16, training=False)]))
        figures[strict] = {name: records[name].sum(0).tolist() for name in ("right", "found", "there")}
        [answer] = task.predict(model, [{"tokens": ["old"] + 8 * ["king"]}], GenerateSettings(), 0)
        answers[strict] = [(entity["type"], entity["start"], entity["end"]) for entity in answer["entities"]]
    assert figures[False] == {"right": [0, 1], "found": [1, 2], "there": [0, 2]}
    assert figures[True] == {"right": [0, 2], "found": [0, 2], "there": [0, 2]}
    assert answers == {False: [("PER", 0, 1), ("LOC", 1, 9)], True: [("PER", 0, 9)]}


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], ["O"], "names.jsonl:1: has 2 tokens but 1 tags; each word needs one tag."),
        (["a"], "O", "names.jsonl:1: the tags are str, not a list with a tag for each word."),
        ("a b", ["O"], "names.jsonl:1: the tokens are str, not a list of words."),
        ([], [], "names.jsonl:1: the list of tokens is empty."),
        (["a", "b"], ["B-X", "Y"], "data.tags: some tags begin with B- or I- ('B-X'), others do not ('Y'). Give tags as IOB2 has them: B-X, I-X and O."),
        (["a"], ["O"], "data.tags: tagging needs at least two tags; the training rows have only 'O'."),
    ],
)  # fmt: skip
def test_wrong_rows_are_refused(tokens: object, tags: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        TokenClassification.learn(rows_of((tokens, tags)), SETTINGS)
    assert str(caught.value) == message


def test_a_tag_that_training_lacks_is_refused(tmp_path: Path, tagged_file: Path, tiny_bert: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"tokens": ["king"], "tags": ["B-PERSONS"]}) + "\n")
    with pytest.raises(UserError) as caught:
        session_of(
            "token-classification", tmp_path / "run", model=str(tiny_bert), data={"train": str(tagged_file), "validation": str(other)}
        )  # fmt: skip
    assert str(caught.value) == (
        f"{other}:1: the tag 'B-PERSONS' does not occur in the training rows "
        "(there: O, B-PERSON, I-PERSON, B-WATER, I-WATER). Did you mean 'B-PERSON'?"
    )


def test_the_gradient_does_not_depend_on_the_arrangement(tmp_path: Path, tagged_file: Path, tiny_bert: Path) -> None:
    """Padded or end to end, at once or in parts: one gradient."""
    found = []
    for packing, micro in (("auto", 16), ("auto", 5), ("off", 16), ("off", 5)):
        session = session_of(
            "token-classification",
            tmp_path / f"{packing}{micro}",
            model=str(tiny_bert),
            data=str(tagged_file),
            train={"packing": packing, "precision": "fp32", "dropout": 0.0},
        )
        session.join()
        job, rows = session.job, range(16)
        batches = [
            collate(session.stores["train"], session.task, [*rows][start : start + micro])
            for start in range(0, 16, micro)
        ]
        assert session.plan.arrangement == ("packed" if packing == "auto" else "padded")
        accumulate(job.model, job.stack, session.task, batches, "cpu", 0)
        found.append(torch.cat([p.grad.flatten() for p in job.model.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-4, atol=1e-6)


def test_a_trained_model_tags_texts_short_and_long(tmp_path: Path, tagged_file: Path, tiny_bert: Path) -> None:
    run = burnish.train(
        "token-classification",
        terminal=QUIET,
        model=str(tiny_bert),
        data=str(tagged_file),
        run={"dir": str(tmp_path / "run")},
        train={"length": "10 epochs", "precision": "fp32", "batch": 16},
        optim={"lr": 5e-3},
    )
    assert run.metrics["validation"]["f1"] > 0.9
    assert said_by_card(run.path)
    text, words = "the old king sees a river", ["never", "king"] * 60
    answers = run.predict([text, {"tokens": words}])
    assert answers[0]["text"] == text
    assert [(e["type"], e["text"], e["start"], e["end"]) for e in answers[0]["entities"]] == [
        ("PERSON", "old king", 1, 3),
        ("WATER", "river", 5, 6),
    ]
    assert [e["start"] for e in answers[1]["entities"]] == [*range(1, 120, 2)], "the words beyond the model's positions"
    assert run.predict([{"tokens": text.split()}])[0] == {"tokens": text.split(), "entities": answers[0]["entities"]}
    session = session_of("token-classification", tmp_path / "run", model=str(tiny_bert), data=str(tagged_file))
    records = score(session.fit.model, session.task, session.stores["validation"], batch=8, device="cpu")
    assert records["words"].sum() == sum(len(row.values["tokens"]) for row in session.splits.validation)


def test_a_model_whose_training_rows_nobody_knows_is_not_held_to_iob2(tmp_path: Path, tiny_bert: Path) -> None:
    row = {"tokens": ["the", "old", "king"], "tags": ["O", "B-PER", "I-PER"]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
    data = {name: str(tmp_path / "rows.jsonl") for name in ("train", "validation")}
    run = {"dir": str(tmp_path / "run")}
    burnish.train(
        "token-classification", terminal=QUIET, model=str(tiny_bert), data=data, run=run, train={"length": "1 steps"}
    )
    for folder, strict in ((tmp_path / "run", True), (tmp_path / "run" / "model", False)):
        opened = Opened(str(folder))
        opened.evaluate(data["train"], QUIET)
        assert (opened.task._may_follow is not None) is strict
