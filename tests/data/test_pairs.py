"""Pairs of answers in every layout, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.data.pairs import pair_of
from burnish.errors import UserError
from burnish.task import Row


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(**values: Any) -> Any:
    return pair_of(Row(values, "pairs.jsonl:3"))


def test_text_with_and_without_a_prompt() -> None:
    found = pair(given="Who?", chosen=" A king.", rejected=" No one.")
    assert (found.prompt, found.chosen, found.rejected, found.is_chat) == ("Who?", " A king.", " No one.", False)
    found = pair(chosen="Who? A king.", rejected="Who? A knight.")
    assert (found.prompt, found.chosen, found.rejected) == ("Who? A", " king.", " knight.")
    found = pair(chosen="Yes", rejected="Yes and no")
    assert (found.prompt, found.chosen, found.rejected) == ("", "Yes", "Yes and no")


@pytest.mark.parametrize(
    "values",
    [
        {"given": [user("Who?")], "chosen": [answer("A king.")], "rejected": [answer("No one.")]},
        {"given": "Who?", "chosen": [answer("A king.")], "rejected": [answer("No one.")]},
        {"given": [user("Who?")], "chosen": "A king.", "rejected": "No one."},
        {"chosen": [user("Who?"), answer("A king.")], "rejected": [user("Who?"), answer("No one.")]},
        {"given": "Who?", "chosen": [user("Who?"), answer("A king.")], "rejected": [user("Who?"), answer("No one.")]},
        {
            "chosen": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "A king."}],
            "rejected": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "No one."}],
        },
    ],
)
def test_conversations(values: dict[str, Any]) -> None:
    found = pair(**values)
    assert found.prompt == [user("Who?")] and found.is_chat
    assert (found.chosen, found.rejected) == ([answer("A king.")], [answer("No one.")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chosen": "a", "rejected": [answer("b")]}, "one answer is text, the other is messages"),
        (
            {"given": "x", "chosen": "a", "rejected": "a"},
            "the chosen and the rejected answer are the same; remove the row",
        ),
        ({"chosen": [answer("a")], "rejected": [answer("b")]}, "the conversation starts with the assistant"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "the chosen answer is not one message of the assistant"),
        (
            {
                "chosen": [user("a"), answer("b"), user("c"), answer("d")],
                "rejected": [user("a"), answer("c"), user("c"), answer("d")],
            },
            "cut the conversations where they part",
        ),
        ({"given": 3, "chosen": [answer("a")], "rejected": [answer("b")]}, "prompt and answers are text, or lists"),
        ({"given": "x", "chosen": 3, "rejected": 4}, "prompt and answers are text, or lists of messages"),
    ],
)
def test_what_is_no_pair_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^pairs.jsonl:3: .*{message}"):
        pair(**values)
