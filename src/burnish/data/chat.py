"""Conversations: checked, written out by the tokenizer's own template, and which characters the assistant wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from burnish.data.new_tokens import opened
from burnish.errors import UserError, nearest, unknown
from burnish.run import home_path

Message = dict[str, Any]

#: Other names of roles and fields (ShareGPT's).
_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
#: Roles that the templates of models know.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

#: Templates for tokenizers that have none of their own. An answer ends with <|im_end|> where the tokenizer knows it as one
#: token, else with the token that ends a text.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + END + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
}


def set_template(tokenizer: Any, wanted: str) -> None:
    """Give the tokenizer a template, which is stored with it.

    Args:
        wanted: a name of `TEMPLATES`, or a file with a Jinja template.

    Raises:
        UserError: it is neither, or the file is no text.
    """
    path = home_path(wanted)
    if wanted in TEMPLATES:
        end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
        if end is None:
            raise UserError("task.template: the tokenizer has no token that ends an answer; take another tokenizer.")
        tokenizer.chat_template = opened(tokenizer, TEMPLATES[wanted].replace("END", repr(end)))
    elif os.path.isfile(path):
        try:
            tokenizer.chat_template = opened(tokenizer, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"task.template: {wanted} cannot be read as UTF-8 text; give a file with a Jinja template."
            ) from error
    else:
        raise unknown("template in task.template (or a file):", wanted, TEMPLATES)


def conversation(value: Any, where: str) -> list[Message]:
    """Return the messages of a row, each with `role` and `content`.

    Raises:
        UserError: they are no conversation in which user and assistant take turns, the user first, or an answer is empty.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise UserError(
            f"{where}: a conversation is a list of messages with role and content; this is {_short(value)}."
        )
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            raise UserError(f"{where}: message {number} is {_short(message)}, not an object with role and content.")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"{where}: message {number} needs a role and a content, both text; it is {_short(message)}."
            )
        role = _NAMES.get(role, role)
        if role not in _ROLES:
            raise UserError(
                f"{where}: message {number} has the role {role[:40]!r}; give one of {', '.join(_ROLES)}.{nearest(role, _ROLES)}"
            )
        more = {name: value for name, value in message.items() if name not in ("role", "from", "content", "value")}
        if role == "assistant" and not content.strip() and not more.get("tool_calls"):
            raise UserError(
                f"{where}: message {number}, the assistant's answer, is empty; write one, or remove the row."
            )
        messages.append({"role": role, "content": content, **more})
    _refuse_disorder([message["role"] for message in messages], where)
    return messages


def _refuse_disorder(roles: list[str], where: str) -> None:
    turns = [(number, role) for number, role in enumerate(roles, 1) if role in ("user", "assistant")]
    if turns and turns[0][1] == "assistant":
        raise UserError(
            f"{where}: the conversation starts with the assistant; put the user's message before it, or drop it."
        )
    for (_, before), (number, role) in pairwise(turns):
        between = roles[number - 2]
        if before == role and between == role:
            raise UserError(f"{where}: message {number} is the {role}'s again; join it with the one before.")
    if "system" in roles[1:]:
        raise UserError(
            f"{where}: the system's message stands at place {roles.index('system', 1) + 1}; it must come first."
        )


def written(tokenizer: Any, messages: Sequence[Message], *, answer_follows: bool, where: str) -> str:
    """Return a conversation as text, as the template writes it.

    Args:
        answer_follows: end with what stands before an answer.

    Raises:
        UserError: the tokenizer has no template, or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: the tokenizer has no chat template, so a conversation cannot be written out. "
            f"Give --task.template {' or '.join(TEMPLATES)}, or a file with one."
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_follows)
    except (TemplateError, TypeError, KeyError) as error:
        raise UserError(f"{where}: the chat template refuses this conversation: {error}") from error


def answers(tokenizer: Any, messages: Sequence[Message], where: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return a conversation as texts, each with the stretches of characters that the assistant writes.

    A stretch begins where generation begins and ends with the mark that ends the turn. Where the template writes an
    earlier answer otherwise than the last one (Qwen3 leaves thoughts out), each answer gets a text of its own, as when
    it is generated.

    Raises:
        UserError: there is no answer, or an answer does not follow what stands before it when it is generated.
    """
    stretches = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = written(tokenizer, messages[:number], answer_follows=True, where=where)
        after = written(tokenizer, messages[: number + 1], answer_follows=False, where=where)
        if not after.startswith(before) or len(after.rstrip()) <= len(before):
            raise UserError(f"{where}: the chat template does not write answer {number + 1} after what asks for it.")
        stretches.append((after, (len(before), len(after.rstrip()))))
    if not stretches:
        raise UserError(f"{where}: the conversation has no answer of the assistant to learn from.")
    whole = stretches[-1][0]
    if all(whole.startswith(text.rstrip()) for text, _ in stretches):
        return [(whole, [stretch for _, stretch in stretches])]
    return [(text, [stretch]) for text, stretch in stretches]


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that ends an answer; None if the template has no such token."""
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    [(text, [(_, end)])] = answers(tokenizer, exchange, "the template")
    ids = tokenizer(text[:end], add_special_tokens=False)["input_ids"]
    return ids[-1] if ids and ids[-1] in set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
