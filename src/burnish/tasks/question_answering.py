"""Question answering: the piece of a text that answers a question, or that there is none."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.tokenizer import fill_up, filled_up, gives_places, pad_id
from burnish.errors import UserError
from burnish.task import Batch, Example, Records, Row, Task

if TYPE_CHECKING:
    import torch

_LEAST_ROOM = 8
_WINDOWS_AT_ONCE = 32
_SHOWN = 12


class QuestionAnsweringSettings(TaskSettings):
    """Find the answer to a question in a text."""

    stride: int = Field(128, ge=0)
    """Tokens that neighbouring windows of a long context share; at most half of a window's context."""
    longest_answer: int = Field(30, ge=1)
    """Most tokens of an answer."""


@dataclass(frozen=True)
class Window:
    """A question and the part of its context that fits into one sequence."""

    features: Example
    begin: int
    """Position of the context's first token."""
    starts: np.ndarray
    """Of each token of the context here, the character of the context where it starts, and in `ends` where it ends."""
    ends: np.ndarray

    def positions(self, start: int, end: int) -> tuple[int, int]:
        """Return the first and last position of the characters `start` to `end`; 0, 0 if they are not all here."""
        if start < self.starts[0] or end > self.ends[-1]:
            return 0, 0
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left")) - 1
        return (self.begin + first, self.begin + last) if first <= last else (0, 0)


class QuestionAnswering(Task):
    """Learn where the answer starts and ends, by cross-entropy over the positions; at the first if there is none.

    A long context is cut into windows that overlap, and each is an example. The answer to a question is the likeliest
    piece of the context in any of its windows. Where some training rows have no answer, none is given if the score of "no
    answer", the least of all windows, lies above that of the best piece by more than a threshold, which is chosen on the
    validation rows.

    Source: Devlin et al. 2019, sections 4.2 and 4.3, and google-research/bert's run_squad.py, which looks for the best
    piece among the 20 likeliest starts and ends, where here all are tried.
    """

    name = "question-answering"
    version = 2
    Settings = QuestionAnsweringSettings
    auto_class = "AutoModelForQuestionAnswering"
    asks = ("question", "context")
    special_tokens = {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": "<pad>"}
    metric_names = ("f1", "exact_match", "loss")

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        gives_places(tokenizer)

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"context": data.context, "question": data.question, "answers": data.answers}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: QuestionAnsweringSettings) -> dict[str, Any]:
        """Return whether there are questions without an answer."""
        kinds = {bool(_answers(row)) for row in rows}
        if True not in kinds:
            raise UserError("data.answers: no training row has an answer.")
        return {"unanswerable": False in kinds}

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 2, "pad_token_id": pad_id(self.tokenizer)}

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        for number, row in enumerate(rows):
            question, context = row.values["question"], row.values["context"]
            answers = _answers(row)
            place = _place(row.where, context, answers) if answers else None
            told = {"question": question, "context": context, "answers": [text for text, _ in answers]}
            content = np.frombuffer(json.dumps(told).encode(), np.uint8)
            for window in self._windows(question, context, sequence, row.where):
                target = np.array(window.positions(*place) if place else (0, 0))
                example: Example = {**window.features, "target": target}
                if not training:
                    example["question"], example["begin"] = np.array([number]), np.array([window.begin])
                    example["starts"], example["ends"], example["row"] = window.starts, window.ends, content
                yield example, row.where

    def _windows(self, question: str, context: str, sequence: int, where: str) -> Iterator[Window]:
        """Yield the windows of a context.

        Raises:
            UserError: the question takes more than half of a sequence, or leaves no room for the context.
        """
        question = question.strip()
        asked = len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if asked > sequence // 2:
            raise UserError(
                f"{where}: the question has {asked:,} tokens, more than half of a sequence of {sequence}. Shorten it, "
                "or give a larger --train.sequence."
            )
        room = sequence - asked - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < _LEAST_ROOM:
            raise UserError(
                f"train.sequence: {sequence} leaves no room for a context; give at least {sequence + _LEAST_ROOM - room}."
            )
        typed = "token_type_ids" in self.tokenizer.model_input_names
        found = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=sequence,
            stride=min(self.settings.stride, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=typed,
            verbose=False,
        )
        for number, ids in enumerate(found["input_ids"]):
            inside = np.flatnonzero([part == 1 for part in found.sequence_ids(number)])
            if not len(inside):
                raise UserError(f"The context {context[:60]!r} has no token that the tokenizer knows of.")
            places = np.array(found["offset_mapping"][number])[inside]
            features = {"input_ids": np.array(ids)}
            if typed:
                features["token_type_ids"] = np.array(found["token_type_ids"][number])
            yield Window(features, int(inside[0]), places[:, 0], places[:, 1])

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, examples)
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        targets: dict[str, np.ndarray] = {
            "target": np.stack([example["target"] for example in examples]).astype(np.int64)
        }
        if "row" in examples[0]:  # what an answer is judged by
            for name in ("question", "begin"):
                targets[name] = np.array([int(example[name][0]) for example in examples])
            targets["context_tokens"] = np.array([len(example["starts"]) for example in examples])
            for name in ("starts", "ends", "row"):
                targets[name] = filled_up([example[name] for example in examples], 0)[0]
            targets["row"] = targets["row"].astype(np.uint8)
        lengths = [len(example["input_ids"]) for example in examples]
        tensors = {name: torch.from_numpy(values) for name, values in targets.items()}
        return Batch(inputs, tensors, {"loss": float(len(examples))}, lengths)

    def _logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the logits of start and end [rows, 2, positions], minus infinity where a row is filled up."""
        import torch

        out = model(**batch.inputs)
        filling = batch.inputs["attention_mask"][:, None] == 0
        return torch.stack([out.start_logits, out.end_logits], 1).float().masked_fill(filling, -torch.inf)

    def _losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean loss of start and end of each window [rows]."""
        from torch.nn import functional

        both = functional.cross_entropy(logits.flatten(0, 1), batch.targets["target"].flatten(), reduction="none")
        return both.unflatten(0, (-1, 2)).mean(1)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self._losses(self._logits(model, batch), batch).sum()}

    def score(self, model: Any, batch: Batch) -> Records:
        """Return the best answer of each window, its score and that of no answer."""
        import torch

        logits = self._logits(model, batch)
        targets = batch.targets
        places = torch.arange(logits.shape[-1], device=logits.device)
        begin = targets["begin"][:, None]
        context = (places >= begin) & (places < begin + targets["context_tokens"][:, None])
        score, start, end = best_spans(logits.masked_fill(~context[:, None], -torch.inf), self.settings.longest_answer)
        sure = logits.log_softmax(-1)
        chosen = torch.stack([start, end], 1)[..., None]
        pairs = {
            "score": score,
            "none": logits[:, :, 0].sum(1),
            "sure": sure.gather(2, chosen)[..., 0].sum(1).exp(),
            "sure_of_none": sure[:, :, 0].sum(1).exp(),
            "loss": self._losses(logits, batch),
            "question": targets["question"],
        }
        found = {name: value.cpu().numpy() for name, value in pairs.items()}
        first, last = ((place - targets["begin"]).cpu().numpy() for place in (start, end))
        starts, ends = targets["starts"].cpu().numpy(), targets["ends"].cpu().numpy()
        each = np.arange(len(first))
        found |= {"start": starts[each, first], "end": ends[each, last]}
        found["row"] = np.array([bytes(row).rstrip(b"\0").decode() for row in targets["row"].cpu().numpy()], object)
        return found

    def join(self, records: Records) -> Records:
        """Return a record for each question: its best answer in any window, and how right it is, and how right none is."""
        order = np.lexsort((-records["score"], records["question"]))
        ordered = {name: values[order] for name, values in records.items()}
        first = np.flatnonzero(np.diff(ordered["question"], prepend=-1))
        joined = {name: ordered[name][first] for name in ("question", "score", "sure", "row", "start", "end")}
        joined["margin"] = np.minimum.reduceat(ordered["none"], first) - joined["score"]
        joined["sure_of_none"] = np.minimum.reduceat(ordered["sure_of_none"], first)
        joined["loss"] = np.add.reduceat(ordered["loss"], first)
        joined["windows"] = np.diff(first, append=len(order))
        rows = [json.loads(row) for row in joined["row"]]
        pieces = [
            _trimmed(row["context"], *place) for row, *place in zip(rows, joined["start"], joined["end"], strict=True)
        ]
        joined["start"], joined["end"] = np.array(pieces).T
        joined["text"] = np.array([row["context"][s:e] for row, (s, e) in zip(rows, pieces, strict=True)], object)
        for name, texts in (("", joined["text"]), ("_of_none", [""] * len(rows))):
            judged = [judge(text, row["answers"]) for text, row in zip(texts, rows, strict=True)]
            joined[f"exact{name}"], joined[f"f1{name}"] = np.array(judged).T
        return joined

    def _silent(self, records: Records) -> np.ndarray:
        """Return which questions are given no answer: bool [questions]."""
        if not self.facts.get("unanswerable"):
            return np.zeros(len(records["margin"]), bool)
        return records["margin"] > self.facts.get("threshold", 0.0)

    def decide(self, records: Records) -> dict[str, Any]:
        """Return the threshold from which no answer is given that has the best F1, midway between two margins."""
        if not self.facts.get("unanswerable"):
            return {}
        return {"threshold": best_threshold(records["margin"], records["f1"], records["f1_of_none"])}

    def metrics(self, records: Records) -> dict[str, float]:
        """Mean F1 and share of exact matches of the questions, as SQuAD's script has them; mean loss of a window."""
        silent = self._silent(records)
        return {
            "f1": float(np.where(silent, records["f1_of_none"], records["f1"]).mean()),
            "exact_match": float(np.where(silent, records["exact_of_none"], records["exact"]).mean()),
            "loss": float(records["loss"].sum() / records["windows"].sum()),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        silent = self._silent(records)
        rows = []
        for place in np.unique(np.linspace(0, len(silent) - 1, _SHOWN).astype(int)).tolist():
            told = json.loads(records["row"][place])
            answer = "" if silent[place] else records["text"][place]
            f1 = float(records["f1_of_none" if silent[place] else "f1"][place])
            rows.append([told["question"], answer or "–", next(iter(told["answers"]), "–"), f1])
        columns = ["question", "predicted", "true", "F1"]
        return [{"kind": "table", "title": "Answers", "columns": columns, "rows": rows}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length, 512)
        answers = []
        for number, given in enumerate(asked, 1):  # each by itself, so an answer does not depend on what else was asked
            row = Row({**given, "answers": []}, f"Input {number}")
            examples = [example for example, _ in self.encode([row], limit, training=False)]
            parts = []
            for start in range(0, len(examples), _WINDOWS_AT_ONCE):
                batch = self.collate(examples[start : start + _WINDOWS_AT_ONCE]).to(str(model.device))
                with torch.inference_mode():
                    parts.append(self.score(model, batch))
            found = self.join({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
            answers.append({"question": given["question"], **self._answer(found)})
        return answers

    def _answer(self, found: Records) -> dict[str, Any]:
        """Return what is said to one question; characters count in the context."""
        if self._silent(found)[0]:
            return {"answer": "", "score": round(float(found["sure_of_none"][0]), 6), "start": 0, "end": 0}
        return {
            "answer": found["text"][0],
            "score": round(float(found["sure"][0]), 6),
            "start": int(found["start"][0]),
            "end": int(found["end"][0]),
        }


def best_spans(logits: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best sum of a start's and an end's logit, and which positions they are [rows] each.

    Args:
        logits: of start and end [rows, 2, positions]; minus infinity where neither may be.
        longest: most positions from start to end, both counted.
    """
    import torch

    starts, ends = logits.unbind(1)
    positions = logits.shape[-1]
    by_length = []
    for length in range(min(longest, positions)):
        by_length.append((starts[:, : positions - length] + ends[:, length:]).max(1))
    scores, length = torch.stack([found.values for found in by_length]).max(0)
    start = torch.stack([found.indices for found in by_length]).gather(0, length[None])[0]
    return scores, start, start + length


def best_threshold(margin: np.ndarray, answered: np.ndarray, silent: np.ndarray) -> float:
    """Return the margin above which it is best to give no answer.

    Args:
        margin: score of no answer minus that of the best answer, of each question.
        answered, silent: what a question is worth with its best answer, and with none.

    >>> best_threshold(np.array([-2.0, -1.0, 1.0]), np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    0.0
    """
    order = np.argsort(margin, kind="stable")
    ordered = margin[order].astype(float)
    worth = np.concatenate([[0.0], np.cumsum((answered - silent)[order])])  # with the first 0, 1, ... answered
    edges = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
    apart = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])  # equal margins are answered together
    return float(edges[int(np.argmax(np.where(apart, worth, -np.inf)))])


def normalised(text: str) -> str:
    """Return a text in lower case without punctuation, articles and needless blanks.

    >>> normalised("The  King's a-b.")
    'kings ab'
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def judge(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of an answer against the best of the true ones; no true one: none is right.

    >>> judge("the old king", ["King", "an old king!"]), judge("old king", ["king"]), judge("", [])
    ((1.0, 1.0), (0.0, 0.6666666666666666), (1.0, 1.0))

    Source: evaluate-v2.0.py of Rajpurkar et al. 2018, which judges rows of SQuAD 1.1 as its own script does.
    """
    given = normalised(answer)
    wanted = [normalised(truth) for truth in truths]
    wanted = [truth for truth in wanted if truth] or [""]
    return max(float(given == truth) for truth in wanted), max(_f1(given.split(), truth.split()) for truth in wanted)


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))


def _trimmed(context: str, start: int, end: int) -> tuple[int, int]:
    """Return the place of a piece of the context without the blanks around it.

    >>> _trimmed("The old king.", 3, 8), _trimmed("The old king.", 3, 4)
    ((4, 7), (4, 4))
    """
    piece = context[start:end]
    first = start + len(piece) - len(piece.lstrip())
    return int(first), int(max(first, end - len(piece) + len(piece.rstrip())))


def _answers(row: Row) -> list[tuple[str, int]]:
    """Return the answers of a row and where they start in the context; none: it cannot be answered."""
    value = row.values["answers"]
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple):
            raise UserError(f'{row.where}: the answers are not lists: {{"text": [...], "answer_start": [...]}}.')
        if len(texts) != len(starts):
            raise UserError(f"{row.where}: has {len(texts)} answers but {len(starts)} starts; each answer needs one.")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list | tuple) and all(isinstance(answer, Mapping) for answer in value):
        pairs = [(answer.get("text"), answer.get("answer_start")) for answer in value]
    else:
        raise UserError(
            f"{row.where}: the answers are {type(value).__name__}; "
            'give {"text": [...], "answer_start": [...]} or a list of {"text": ..., "answer_start": ...}.'
        )
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{row.where}: the answer {text!r} is no text; leave it out where there is no answer.")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise UserError(
                f"{row.where}: the answer {text!r} has no answer_start, its first character in the context."
            )
    return pairs


def _place(where: str, context: str, answers: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """Return first character and end of the first answer that stands in the context at its start, or once elsewhere."""
    for text, start in answers:
        if not context.startswith(text, start):
            start = context.find(text) if context.count(text) == 1 else -1
        if start >= 0:
            return start, start + len(text)
    text, start = answers[0]
    times = context.count(text)
    raise UserError(
        f"{where}: the answer {text!r} does not stand at character {start} of the context {context[:60]!r}, "
        f"which has it {f'{times} times elsewhere' if times else 'nowhere'}."
    )
