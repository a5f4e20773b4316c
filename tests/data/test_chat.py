"""Conversations: what the assistant writes is what is learned, in six templates, with and without generation markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.api import evaluate, predict
from burnish.data.chat import answers, conversation, end_of_turn, set_template, written
from burnish.data.tokenizer import train_tokenizer
from burnish.errors import UserError
from burnish.terminal import Terminal
from helpers import sentences, session_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ GEN_IN }}{{ m.content }}<|im_end|>{{ GEN_OUT }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As the families' own templates write them, in the part that matters here.
TEMPLATES = {
    "chatml": CHATML,
    "llama3": (
        "<|begin|>{% for m in messages %}<|start_header|>{{ m.role }}<|end_header|>\n\n{{ GEN_IN }}{{ m.content | trim }}<|eot|>"
        "{{ GEN_OUT }}{% endfor %}{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}"
    ),
    "qwen3": (  # thoughts stay with the last answer only
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ GEN_IN }}{% if loop.last and m.role == 'assistant' %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>{{ GEN_OUT }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (
        "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ GEN_IN }}"
        "{{ m.content | trim }}<end_of_turn>{{ GEN_OUT }}\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ GEN_IN }} {{ m.content }}"
        "</s>{{ GEN_OUT }}{% endif %}{% endfor %}"
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ GEN_IN }}{{ m.content }}<|end|>{{ GEN_OUT }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}  # fmt: skip
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi": "<|end|>",
}
CHAT = [
    {"role": "user", "content": "Who keeps the old garden?"},
    {"role": "assistant", "content": "The quiet king keeps it."},
    {"role": "user", "content": "And the river?"},
    {"role": "assistant", "content": "It runs slowly."},
]


def template(name: str, *, markers: bool) -> str:
    inside = "{% if m.role == 'assistant' %}{% generation %}"
    marked = TEMPLATES[name]
    if not markers:
        return marked.replace("{{ GEN_IN }}", "").replace("{{ GEN_OUT }}", "")
    # a marked template writes its answer inside {% generation %} ... {% endgeneration %}, and others plainly
    start, end = marked.index("{{ GEN_IN }}"), marked.index("{{ GEN_OUT }}")
    body = marked[start + len("{{ GEN_IN }}") : end]
    both = f"{inside}{body}{{% endgeneration %}}{{% else %}}{body}{{% endif %}}"
    return marked[:start] + both + marked[end + len("{{ GEN_OUT }}") :]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(tmp_path_factory.mktemp("chat") / "tokenizer", sentences(200), 400)


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_and_their_ends_are_what_is_learned(name: str, markers: bool, tokenizer: Any) -> None:
    tokenizer.chat_template = template(name, markers=markers)
    found = answers(tokenizer, CHAT, "a.jsonl:1")
    learned = [text[first:end].strip() for text, stretches in found for first, end in stretches]
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert learned == [
        f"{thought}{message['content']}{ENDS[name]}" for message in CHAT if message["role"] == "assistant"
    ]
    assert len(found) == (2 if name == "qwen3" else 1)  # Qwen3 writes an earlier answer otherwise than the last
    for text, stretches in found:  # what stands before an answer is what generation is given
        number = 1 if text.count(CHAT[3]["content"]) == 0 else 3
        assert text[: stretches[-1][0]] == written(tokenizer, CHAT[:number], answer_follows=True, where="")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "qwen3"])
def test_transformers_own_mask_says_the_same(name: str, tokenizer: Any) -> None:
    """Where a template has generation markers, transformers marks the answers' tokens itself."""
    tokenizer.chat_template = template(name, markers=True)
    theirs = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    [(text, stretches)] = answers(tokenizer, CHAT, "")
    ours = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert theirs["input_ids"] == ours["input_ids"]
    mask = [int(any(first <= start < end for first, end in stretches)) for start, _ in ours["offset_mapping"]]
    assert mask == list(theirs["assistant_masks"])


def test_a_run_learns_answers_only_and_speaks_as_it_was_taught(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"from": "human", "value": f"Is {n} even?"},
                {"from": "gpt", "value": "yes" if n % 2 == 0 else "no"},
            ]
        }
        for n in range(60)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "preset": "gpt2-nano",
        "model": {"vocab_size": 300},
        "data": {"train": str(path), "messages": "messages"},
        "task": {"template": "chatml"},
        "train": {"length": "80 steps", "batch": 8, "sequence": 64, "precision": "fp32"},
        "optim": {"lr": 3e-3},
        "run": {"dir": str(tmp_path / "run"), "threads": 1},
    }
    session = session_of("text-generation", tmp_path / "other", **{**settings, "run": {"dir": str(tmp_path / "other")}})
    batch = session.task.collate([session.stores["train"][0]])
    learned = session.task.tokenizer.decode(batch.targets["labels"])
    assert learned in ("yes<|endoftext|>", "no<|endoftext|>")
    run = burnish.train("text-generation", terminal=Terminal(quiet=True), **settings)
    assert isinstance(run, burnish.Run)
    answer = run.predict("Is 4 even?", temperature=0)
    assert answer["generated"] in ("yes", "no")
    assert answer == run.predict({"messages": [{"role": "user", "content": "Is 4 even?"}]}, temperature=0) | {
        "messages": "Is 4 even?"
    }
    bare = str(run.path / "model")  # its own tokenizer says that a text is a message
    [alone] = predict(bare, ["Is 4 even?"], task="text-generation", generate={"temperature": 0})
    assert alone["messages"] == "Is 4 even?" and alone["generated"] in ("yes", "no")  # in bf16: a near tie may turn
    found = evaluate(bare, data={"test": str(path), "messages": "messages"}, task="text-generation")
    assert found["metrics"]["loss"] < 1 and found["examples"] == 60
    from transformers import AutoTokenizer

    stored = AutoTokenizer.from_pretrained(run.path / "model")
    text = stored.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|endoftext|>\n<|im_start|>assistant\n"


def test_the_token_that_ends_a_turn_is_found(tokenizer: Any) -> None:
    set_template(tokenizer, "chatml")
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = template("phi", markers=False)
    assert end_of_turn(tokenizer) is None  # `<|end|>` is no token of this tokenizer


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "Hi"}], "x:1: the conversation starts with the assistant; put the user's"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "x:1: message 2 is the user's again; join",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "x:1: the system's message stands at place 2",
        ),
        (
            [CHAT[0], {"role": "assistant", "content": ""}],
            "x:1: message 2, the assistant's answer, is empty; write one",
        ),
        ([CHAT[0], {"from": "gpt", "value": " \n"}, *CHAT[2:]], "x:1: message 2, the assistant's answer, is empty"),
        ([{"role": "user", "text": "a"}], "x:1: message 1 needs a role and a content, both text"),
        (["Hi"], "x:1: message 1 is 'Hi', not an object with role and content"),
        ([], "x:1: a conversation is a list of messages"),
        (7, "x:1: a conversation is a list of messages with role and content; this is 7"),
    ],
)
def test_a_conversation_out_of_order_is_refused_by_row(messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        conversation(messages, "x:1")


def test_an_answer_that_only_calls_a_tool_needs_no_words() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    assert conversation([CHAT[0], call], "x:1")[1] == call


def test_a_tokenizer_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"x:1: the tokenizer has no chat template.* Give --task.template chatml"):
        answers(tokenizer, CHAT, "x:1")
    with pytest.raises(UserError, match="chatmll"):
        set_template(tokenizer, "chatmll")
    set_template(tokenizer, "chatml")
    with pytest.raises(UserError, match="x:1: the conversation has no answer of the assistant to learn from"):
        answers(tokenizer, CHAT[:1], "x:1")
