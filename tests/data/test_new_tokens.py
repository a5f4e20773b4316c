"""New tokens in a tokenizer: what is one token then, what stands before a text, what their embeddings begin as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from burnish.config import AdapterSettings, Config, ModelSettings, RunSettings
from burnish.data.chat import set_template
from burnish.data.new_tokens import beginnings, extend, opened, opening_ids
from burnish.errors import UserError


def config(*added: str, virtual: int = 0, seed: int = 0) -> Config:
    adapter = AdapterSettings(kind="prompt", tokens=virtual) if virtual else AdapterSettings()
    return Config(model=ModelSettings(path="x", added_tokens=added), adapter=adapter, run=RunSettings(seed=seed))


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def test_an_added_token_is_read_exactly_as_written_and_begins_as_its_pieces(tokenizer: Any) -> None:
    pieces = tokenizer("river king", add_special_tokens=False)["input_ids"]
    size, given = len(tokenizer), config("River King")
    extend(tokenizer, given)
    ids = tokenizer("the River King river king", add_special_tokens=False)["input_ids"]
    assert ids[1:] == [size, *pieces]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("the River King")
    assert beginnings(tokenizer, given) == {size: pieces}


def test_virtual_tokens_begin_as_ordinary_ones_by_the_seed(tokenizer: Any) -> None:
    special, given = set(tokenizer.all_special_ids), config(virtual=9)
    assert beginnings(tokenizer, config()) == {}
    extend(tokenizer, given)
    found = beginnings(tokenizer, given)
    assert list(found) == opening_ids(tokenizer) and len(found) == 9
    drawn = {token for [token] in found.values()}
    assert len(drawn) == 9 and not drawn & special
    assert beginnings(tokenizer, config(virtual=9, seed=1)) != found


def test_virtual_tokens_stand_before_a_text_once_and_survive_being_stored(tokenizer: Any, tmp_path: Path) -> None:
    assert opened(tokenizer, "the king") == "the king" and opening_ids(tokenizer) == []
    extend(tokenizer, config(virtual=2))
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = opened(tokenizer, "the king")
    assert text == "<|prompt-1|><|prompt-2|>the king" == opened(tokenizer, text)
    ids = tokenizer(text)["input_ids"]
    assert ids[1:3] == opening_ids(tokenizer)
    assert ids[3:] == tokenizer("the king")["input_ids"][1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the king"
    short = tokenizer(text, "old " * 20, truncation=True, max_length=8)["input_ids"]
    assert short[1:3] == opening_ids(tokenizer)


def test_a_chat_template_begins_with_the_virtual_tokens_whenever_it_is_set(tokenizer: Any) -> None:
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    extend(tokenizer, config(virtual=2))
    chat = [{"role": "user", "content": "the king"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|prompt-1|><|prompt-2|>the king"
    set_template(tokenizer, "chatml")
    assert tokenizer.apply_chat_template(chat, tokenize=False).startswith("<|prompt-1|><|prompt-2|><|im_start|>user")


def test_a_model_that_has_a_prompt_takes_no_other(tokenizer: Any) -> None:
    extend(tokenizer, config(virtual=2))
    with pytest.raises(UserError, match=r"adapter.kind: '<\|prompt-1\|>' is a token already; take lora."):
        extend(tokenizer, config(virtual=2))
