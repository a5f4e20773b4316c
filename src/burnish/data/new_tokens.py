"""Tokens that a pretrained model's tokenizer gets: texts of the user's own, and the virtual tokens of a prompt.

Virtual tokens are tokens like others, written `<|prompt-1|>` and so on. They stand before every text that the model reads, in
training as in use, so whatever reads, caches or generates text needs to know nothing of them.
"""

from __future__ import annotations

import json
from itertools import count, takewhile
from typing import Any

from burnish.config import Config
from burnish.data.order import permutation
from burnish.data.tokenizer import gives_places
from burnish.errors import UserError
from burnish.task import Task, registry

_VIRTUAL = "<|prompt-{}|>"


def virtual_tokens(config: Config) -> list[str]:
    """Return the virtual tokens that the settings ask for."""
    return [_VIRTUAL.format(n + 1) for n in range(config.adapter.tokens)] if config.adapter.kind == "prompt" else []


def new_tokens(config: Config) -> list[str]:
    """Return all tokens that the settings give the tokenizer."""
    return [*config.model.added_tokens, *virtual_tokens(config)]


def refuse_new_tokens(config: Config, task: type[Task]) -> None:
    """Look whether the settings leave new tokens something to be learned from.

    Raises:
        UserError: they do not.
    """
    setting = "model.added_tokens" if config.model.added_tokens else "adapter.kind"
    what = "new tokens" if config.model.added_tokens else "prompt"
    if not new_tokens(config):
        return
    if config.model.path is None:
        raise UserError(
            f"{setting}: a model from scratch takes no {what}, since its tokenizer is trained on the data. Drop the setting, "
            "or give a pretrained --model."
        )
    if config.freeze.layers:
        raise UserError(
            f"freeze.layers: the embeddings stay as they are then, so {what} could not be learned. Drop freeze.layers or "
            f"{setting}."
        )
    if config.adapter.kind == "prompt" and not task.takes_prompt:
        able = ", ".join(name for name, one in registry().items() if one.takes_prompt)
        raise UserError(f"adapter.kind: {task.name} takes no prompt ({able} do); take lora.")


def extend(tokenizer: Any, config: Config) -> None:
    """Give a tokenizer the run's new tokens; its chat template begins with the virtual ones.

    Raises:
        UserError: a token is empty, is given twice or exists, or the tokenizer cannot be extended.
    """
    from tokenizers import AddedToken

    added, virtual = config.model.added_tokens, virtual_tokens(config)
    if not (added or virtual):
        return
    gives_places(tokenizer)
    known = set(tokenizer.get_vocab())
    for token in [*added, *virtual]:
        if not token.strip():
            raise UserError("model.added_tokens: one of them is empty; give texts.")
        if token in known:
            setting, remedy = (
                ("adapter.kind", "take lora") if token in virtual else ("model.added_tokens", "leave it out")
            )
            raise UserError(f"{setting}: {token!r} is a token already; {remedy}.")
        known.add(token)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in virtual], special_tokens=True)
    if virtual:
        tokenizer.truncation_side = "right"  # what is cut must not be the prompt
    if virtual and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = opened(tokenizer, tokenizer.chat_template)


def opening(tokenizer: Any) -> str:
    """Return the virtual tokens of a tokenizer as the text that stands before every other; mostly there are none."""
    known = tokenizer.added_tokens_encoder
    return "".join(takewhile(known.__contains__, map(_VIRTUAL.format, count(1))))


def opened(tokenizer: Any, text: str) -> str:
    """Return a text with the virtual tokens before it, where they are not there already."""
    first = opening(tokenizer)
    return text if text.startswith(first) else first + text


def opening_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the virtual tokens."""
    first = opening(tokenizer)
    return list(tokenizer(first, add_special_tokens=False)["input_ids"]) if first else []


def beginnings(tokenizer: Any, config: Config) -> dict[int, list[int]]:
    """Return the id of each new token and those of the older ones whose mean its embedding begins as.

    For an added token these are the pieces that its text was before, for a virtual one it is a token drawn from the
    vocabulary.

    Args:
        tokenizer: has the new tokens.

    Raises:
        UserError: the tokenizer sees nothing in the text of a token.

    Source: Lester et al. 2021, section 3.2 (sampled vocabulary).
    """
    from tokenizers import Tokenizer

    added, virtual = config.model.added_tokens, virtual_tokens(config)
    if not (added or virtual):
        return {}
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in {*added, *virtual}]
    older = Tokenizer.from_str(json.dumps(parts))
    pieces = [older.encode(token, add_special_tokens=False).ids for token in added]
    for token, found in zip(added, pieces, strict=True):
        if not found:
            raise UserError(f"model.added_tokens: the tokenizer sees nothing in {token!r}; leave it out.")
    words = sorted(
        {*older.get_vocab(with_added_tokens=False).values()} - {token["id"] for token in parts["added_tokens"]}
    )
    order = permutation(config.run.seed, 0, len(words))
    drawn = [[words[order[n % len(words)]]] for n in range(len(virtual))]
    ids = tokenizer.convert_tokens_to_ids([*added, *virtual])
    return dict(zip(ids, [*pieces, *drawn], strict=True))
