"""Token classification: a tag for each word, such as names in a text or parts of speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.tokenizer import fill_up, filled_up, gives_places, pad_id
from burnish.errors import UserError, nearest
from burnish.task import Batch, Example, Records, Row, Task, label_options

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_MOST_TAGS = 10_000
_OUTSIDE = "O"


class TokenClassificationSettings(TaskSettings):
    """Tag each word of a text."""


class TokenClassification(Task):
    """A tag for each word, learned by cross-entropy at the word's first token; its other tokens are no targets.

    Where tags begin with B- and I-, words form entities and entities are counted: one is right if its words and its type
    are. Other tags are counted word by word. Words that do not fit into a sequence are given no tag, and count as missed.
    Where in training each I- follows its B- or I-, the answer is the likeliest sequence of tags of which that is true.

    Source: Tjong Kim Sang and De Meulder 2003 (CoNLL-2003), with the entities of its conlleval script.
    """

    name = "token-classification"
    Settings = TokenClassificationSettings
    auto_class = "AutoModelForTokenClassification"
    asks = ("tokens",)
    metric_names = ("f1", "precision", "recall", "accuracy", "loss")

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        gives_places(tokenizer)
        self._names: list[str] = facts["labels"]
        self._grouped = is_grouped(self._names)
        self._types = sorted({_type(tag, self._grouped) for tag in self._names if tag != _OUTSIDE})
        strict = facts.get("strict")  # runs of older versions lack it
        self._may_follow = np.array([[_may_follow(a, b) for b in self._names] for a in self._names]) if strict else None

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"tokens": data.tokens, "tags": data.tags}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: TokenClassificationSettings) -> dict[str, Any]:
        """Return the names of the tags, outside first, then by type, each B- with its I-; and whether all rows are IOB2."""
        names: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        for row in rows:
            tags = _tags(row)
            names.update(tags)
            pairs.update(zip([_OUTSIDE, *tags], tags, strict=False))
        inside = {tag for tag in names if tag[:2] in ("B-", "I-")}
        if inside:
            odd = sorted(names - inside - {_OUTSIDE})
            if odd:
                raise UserError(
                    f"data.tags: some tags begin with B- or I- ({min(inside)!r}), others do not ({odd[0]!r}). "
                    "Give tags as IOB2 has them: B-X, I-X and O."
                )
            names |= {f"I-{tag[2:]}" for tag in inside} | {_OUTSIDE}
        if len(names) < 2:
            raise UserError(
                f"data.tags: tagging needs at least two tags; the training rows have only {next(iter(names))!r}."
            )
        if len(names) > _MOST_TAGS:
            raise UserError(f"data.tags: {len(names):,} different tags in the training rows; is this the right column?")
        return {
            "labels": sorted(names, key=lambda tag: (tag != _OUTSIDE, tag[2:] if inside else tag, tag)),
            "strict": bool(inside) and all(_may_follow(before, tag) for before, tag in pairs),
        }

    def model_options(self) -> dict[str, Any]:
        return {
            **label_options(self._names),
            "pad_token_id": pad_id(self.tokenizer),
        }

    def cuts_long_rows(self) -> bool:
        return True

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        number = {tag: index for index, tag in enumerate(self._names)}
        remaining = iter(rows)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            given = [_tags(row) for row in waiting]
            for row, tags in zip(waiting, given, strict=True):
                unknown = next((tag for tag in tags if tag not in number), None)
                if unknown is not None:
                    raise UserError(
                        f"{row.where}: the tag {unknown!r} does not occur in the training rows "
                        f"(there: {', '.join(list(number)[:10])}).{nearest(unknown, number)}"
                    )
            inputs = self._inputs([[str(word) for word in row.values["tokens"]] for row in waiting], sequence)
            for row, tags, features in zip(waiting, given, inputs, strict=True):
                yield {**features, "tags": np.array([number[tag] for tag in tags])}, row.where

    def _inputs(self, texts: Sequence[Sequence[str]], sequence: int) -> list[Example]:
        """Return of each list of words its `input_ids` and `first`: where each word's first token stands, -1: nowhere.

        Words are joined by blanks and found again by their characters, which serves tokenizers of every kind: those that
        split at blanks and those to which the blank belongs to the word.
        """
        found = self.tokenizer(
            [" ".join(words) for words in texts],
            truncation=True,
            max_length=sequence,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            {"input_ids": np.array(ids), "first": first_tokens(words, offsets)}
            for words, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True)
        ]

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, examples)
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        first = filled_up([example["first"] for example in examples], -1)[0]
        tags = filled_up([example["tags"] for example in examples], -1)[0]
        targets = {"first": torch.from_numpy(first), "tags": torch.from_numpy(tags)}
        lengths = [len(example["input_ids"]) for example in examples]
        return Batch(inputs, targets, {"loss": float((first >= 0).sum())}, lengths)

    def _word_logits(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the words that are read [words read, tags], and which they are: bool [rows, words]."""
        logits, first = model(**batch.inputs).logits, batch.targets["first"]
        read = first >= 0
        rows = read.nonzero()[:, 0]
        return logits[rows, first[read]].float(), read

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        logits, read = self._word_logits(model, batch)
        return {"loss": functional.cross_entropy(logits, batch.targets["tags"][read], reduction="sum")}

    def score(self, model: Any, batch: Batch) -> Records:
        """Return of each row how many entities of each type are right, found and there, and its words and loss."""
        from torch.nn import functional

        logits, read = self._word_logits(model, batch)
        tags = batch.targets["tags"]
        losses = tags.new_zeros(tags.shape, dtype=logits.dtype)
        losses[read] = functional.cross_entropy(logits, tags[read], reduction="none")
        real, read = (tags >= 0).cpu().numpy(), read.cpu().numpy()
        true, given = tags.cpu().numpy(), np.full(tags.shape, -1)
        of_rows = np.split(logits.cpu().numpy(), read.sum(1).cumsum()[:-1])
        given[read] = np.concatenate([best_tags(part, self._may_follow) for part in of_rows])
        counts = np.zeros((3, len(true), len(self._types)), int)
        for row in range(len(true)):
            found = set(self._spans(given[row][real[row]]))
            there = set(self._spans(true[row][real[row]]))
            for count, spans in zip(counts, (found & there, found, there), strict=True):
                for kind, _, _ in spans:
                    count[row, self._types.index(kind)] += 1
        return {
            "right": counts[0],
            "found": counts[1],
            "there": counts[2],
            "words_right": ((given == true) & real).sum(1),
            "words": real.sum(1),
            "loss": losses.sum(1).cpu().numpy(),
            "targets": read.sum(1),
        }

    def _spans(self, numbers: Sequence[int] | np.ndarray) -> list[tuple[str, int, int]]:
        """Return the entities in tags given by number; -1, no tag, is outside."""
        return entities([self._names[n] if n >= 0 else _OUTSIDE for n in numbers], self._grouped)

    def metrics(self, records: Records) -> dict[str, float]:
        """Precision, recall and F1 of all entities together, share of words with the right tag, mean loss of a word."""
        precision, recall, f1 = _rates(*(int(records[name].sum()) for name in ("right", "found", "there")))
        return {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "accuracy": float(records["words_right"].sum() / max(records["words"].sum(), 1)),
            "loss": float(records["loss"].sum() / max(records["targets"].sum(), 1)),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        sums = [records[name].sum(0).tolist() for name in ("right", "found", "there")]
        rows = [
            [kind, there, found, *_rates(right, found, there)]
            for kind, right, found, there in zip(self._types, *sums, strict=True)
        ]
        columns = ["type", "there", "found", "precision", "recall", "F1"]
        title = "Entities" if self._grouped else "Tags"
        return [{"kind": "table", "title": title, "columns": columns, "rows": rows}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        answers = []
        for given in asked:
            told = given["tokens"]
            words = told.split() if isinstance(told, str) else [str(word) for word in _words(told, "The input")]
            tags, scores = self._tagged(model, words)
            entities = [
                {
                    "type": kind,
                    "text": " ".join(words[start:end]),
                    "start": start,
                    "end": end,
                    "score": round(float(np.mean(scores[start:end])), 6),
                }
                for kind, start, end in self._spans(tags)
            ]
            answers.append({"text" if isinstance(told, str) else "tokens": told, "entities": entities})
        return answers

    def _tagged(self, model: Any, words: Sequence[str]) -> tuple[list[int], list[float]]:
        """Return the number of each word's tag and its probability; a text too long is read in pieces."""
        import torch

        from burnish.models.load import longest_sequence

        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length)
        tags, scores = [-1] * len(words), [0.0] * len(words)
        begin = 0
        while begin < len(words):
            [example] = self._inputs([words[begin:]], limit)
            batch = self.collate([{**example, "tags": np.zeros(len(words) - begin, int)}]).to(str(model.device))
            with torch.inference_mode():
                logits, read = self._word_logits(model, batch)
            before = tags[begin - 1] if begin else -1
            best = best_tags(logits.cpu().numpy(), self._may_follow, max(before, 0))
            sure = logits.softmax(-1).cpu().numpy()[np.arange(len(best)), best]
            places = (read[0].nonzero()[:, 0] + begin).tolist()
            for place, tag, score in zip(places, best.tolist(), sure.tolist(), strict=True):
                tags[place], scores[place] = tag, score
            if len(example["input_ids"]) < limit:
                break
            begin = places[-1] + 1 if places else begin + 1
        return tags, scores


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return where the first token of each word stands, -1 for a word without one.

    Args:
        offsets: characters of each token in the words joined by blanks; special tokens have none.

    >>> first_tokens(["a", "king"], [(0, 0), (0, 1), (1, 4), (4, 6), (0, 0)]).tolist()
    [1, 2]
    """
    owner = np.full(sum(map(len, words)) + len(words), -1)
    start = 0
    for number, word in enumerate(words):
        owner[start : start + len(word)] = number
        start += len(word) + 1
    first = np.full(len(words), -1)
    for place in range(len(offsets) - 1, -1, -1):
        begin, end = offsets[place]
        if begin < end and owner[end - 1] >= 0:  # by its last character: a blank may be its first
            first[owner[end - 1]] = place
    return first


def best_tags(scores: np.ndarray, may_follow: np.ndarray | None, before: int = 0) -> np.ndarray:
    """Return the likeliest sequence of tags, by number, in which each follows one that it may (Viterbi 1967).

    Args:
        scores: logits of each word's tags [words, tags].
        may_follow: whether a tag may stand before another [tags, tags]; None: any may.
        before: tag of the word before the first.

    >>> scores, may_follow = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 9.0]]), np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    >>> best_tags(scores, None).tolist(), best_tags(scores, may_follow > 0).tolist()
    ([0, 2], [1, 2])
    """
    if may_follow is None or not len(scores):
        return scores.argmax(-1)
    total = np.where(may_follow[before], scores[0], -np.inf)
    came_from = []
    for word in scores[1:]:
        ways = np.where(may_follow, total[:, None], -np.inf)
        came_from.append(ways.argmax(0))
        total = ways.max(0) + word
    path = [total.argmax()]
    for previous in reversed(came_from):
        path.append(previous[path[-1]])
    return np.array(path[::-1])


def _may_follow(before: str, tag: str) -> bool:
    """Return whether IOB2 has a tag after another: I- goes on with what has begun."""
    return not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)


def is_grouped(names: Iterable[str]) -> bool:
    """Return whether tags say where an entity begins and goes on."""
    return all(tag == _OUTSIDE or tag[:2] in ("B-", "I-") for tag in names)


def _type(tag: str, grouped: bool) -> str:
    return tag[2:] if grouped else tag


def entities(tags: Sequence[str], grouped: bool = True) -> list[tuple[str, int, int]]:
    """Return the entities in the tags of a text: type, first word, and the word after the last.

    B- begins one, and so does I- after another type or outside, as in conlleval.

    Args:
        grouped: whether tags begin with B- and I-; else each word has its own.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER"])
    [('PER', 0, 2), ('LOC', 3, 4), ('PER', 4, 5), ('PER', 5, 6)]
    >>> entities(["noun", "O", "noun"], grouped=False)
    [('noun', 0, 1), ('noun', 2, 3)]
    """
    if not grouped:
        return [(tag, place, place + 1) for place, tag in enumerate(tags) if tag != _OUTSIDE]
    found = []
    current, start = None, 0
    for place, tag in enumerate([*tags, _OUTSIDE]):
        kind = None if tag == _OUTSIDE else tag[2:]
        if kind == current and not tag.startswith("B-"):
            continue
        if current is not None:
            found.append((current, start, place))
        current, start = kind, place
    return found


def _rates(right: int, found: int, there: int) -> tuple[float, float, float]:
    """Return precision, recall and F1; 0 where there is nothing to divide by."""
    both = found + there
    return right / found if found else 0.0, right / there if there else 0.0, 2 * right / both if both else 0.0


def _words(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: the tokens are {type(value).__name__}, not a list of words.")
    if not value:
        raise UserError(f"{where}: the list of tokens is empty.")
    return value


def _tags(row: Row) -> list[str]:
    """Return the tag of each word of a row, as text."""
    words, tags = _words(row.values["tokens"], row.where), row.values["tags"]
    if not isinstance(tags, list | tuple):
        raise UserError(f"{row.where}: the tags are {type(tags).__name__}, not a list with a tag for each word.")
    if len(words) != len(tags):
        raise UserError(f"{row.where}: has {len(words)} tokens but {len(tags)} tags; each word needs one tag.")
    return [str(tag) for tag in tags]
