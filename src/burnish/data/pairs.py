"""Pairs of answers of which one is preferred: read in the layouts that the ecosystem has, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.config import DataSettings
from burnish.data.chat import Message, conversation
from burnish.data.rows import GIVEN
from burnish.errors import UserError
from burnish.task import Example, Row


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the better one first.

    Each is text, or all are lists of messages; the prompt's messages come before those of an answer.
    """

    prompt: Any
    chosen: Any
    rejected: Any
    where: str
    """The row it comes from."""

    @property
    def is_chat(self) -> bool:
        """Whether prompt and answers are messages."""
        return not isinstance(self.chosen, str)


def pair_columns(data: DataSettings) -> dict[str, str]:
    """Return the columns of a pair, by the names that `pair_of` reads."""
    return ({GIVEN: data.prompt} if data.prompt else {}) | {"chosen": data.chosen, "rejected": data.rejected}


def pair_of(row: Row) -> Pair:
    """Return the pair in a row.

    The prompt stands in its own column, or both answers begin with it: then it is what they have in common, up to the end
    of a word or a message.

    Raises:
        UserError: an answer is neither text nor messages, or the two do not differ in what follows the prompt.

    Source: the layouts are TRL's ("Dataset formats": explicit and implicit prompts, standard and conversational).
    """
    prompt, chosen, rejected = row.values.get(GIVEN), row.values["chosen"], row.values["rejected"]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        _refuse_other(name, answer, row.where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError(f"{row.where}: one answer is text, the other is messages; give both the same way.")
    if isinstance(chosen, str) and isinstance(prompt, str | None):
        shared = _shared_text(chosen, rejected) if prompt is None else 0
        pair = Pair(chosen[:shared] if prompt is None else prompt, chosen[shared:], rejected[shared:], row.where)
    else:
        whole = [_messages(prompt, answer, row.where) for answer in (chosen, rejected)]
        count = next((n for n, (a, b) in enumerate(zip(*whole, strict=False)) if a != b), min(map(len, whole)))
        pair = Pair(whole[0][:count], whole[0][count:], whole[1][count:], row.where)
        _refuse_odd_turns(pair)
    if pair.chosen == pair.rejected:
        raise UserError(f"{row.where}: the chosen and the rejected answer are the same; remove the row.")
    return pair


def answer_to(prompt: Any, answer: Any, where: str) -> tuple[str | None, Any]:
    """Return a prompt and one answer to it, both text; or None, and the messages of both.

    Raises:
        UserError: they are neither text nor messages.
    """
    _refuse_other("chosen", answer, where)
    if isinstance(answer, str) and isinstance(prompt, str | None):
        return prompt, answer
    return None, _messages(prompt, answer, where)


def _refuse_other(name: str, answer: Any, where: str) -> None:
    if not isinstance(answer, str | list | tuple):
        raise UserError(
            f"{where}: the {name} answer is {type(answer).__name__}; prompt and answers are text, or lists of messages "
            "with role and content."
        )


def _shared_text(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common, up to the end of a word.

    >>> _shared_text("Who goes there? A king.", "Who goes there? A knight.")
    17
    """
    count = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    while count > 0 and not one[count - 1].isspace() and not one[count : count + 1].isspace():
        count -= 1
    return count - 1 if count > 0 and one[count - 1] == " " else count  # a blank belongs to the word after it


def _messages(prompt: Any, answer: Any, where: str) -> list[Message]:
    """Return all messages of a prompt and an answer to it."""
    answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    begins = answer[0].get("role", answer[0].get("from")) if _is_messages(answer) else None
    if prompt is None or (isinstance(prompt, str) and begins in ("user", "human", "system")):
        return conversation(answer, where)  # begins with the prompt
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not _is_messages(before) or not _is_messages(answer):
        raise UserError(f"{where}: prompt and answers are text, or lists of messages with role and content.")
    return conversation([*before, *answer], where)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _refuse_odd_turns(pair: Pair) -> None:
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not pair.prompt or [message["role"] for message in answer] != ["assistant"]:
            raise UserError(
                f"{pair.where}: the {name} answer is not one message of the assistant after messages that both begin "
                "with; cut the conversations where they part."
            )


def halves(example: Example, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of a feature that belong to the chosen and to the rejected answer, by the feature `sizes`."""
    size = int(example["sizes"][0])
    return example[name][:size], example[name][size:]


def texts_of(row: Row) -> Iterator[str]:
    """Yield the texts of a row's pair."""
    pair = pair_of(row)
    for part in (pair.prompt, pair.chosen, pair.rejected):
        yield from [part] if isinstance(part, str) else [message["content"] for message in part]
