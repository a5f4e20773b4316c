"""What every side of a speed work is handed: the folder that `benchmarks.peers.given` describes, and burnish's recipe."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.peers.given import IGNORED, Example, Given
from benchmarks.rows import ROOT, own_cache
from burnish.api import resolve
from burnish.data.order import rows_of_step
from burnish.data.tokenizer import load_tokenizer, train_tokenizer
from burnish.models.freeze import freeze
from burnish.models.load import quiet
from burnish.run import RunFolder
from burnish.session import Session
from burnish.terminal import Terminal

ASSETS = ROOT / ".assets"
LR = 5e-5
Text = dict[str, str]


@dataclass(frozen=True)
class Data:
    """Rows of a work and the model that learns them.

    Args:
        rows: name of the function below that writes the rows.
        shape: of a causal language model, one of `SHAPES`; a classifier is the pretrained encoder.
        model: settings of the model's config over that.
        train: number of training rows; `held_out` more follow for the final loss.
        positions: of a sequence; one token less than a peer's row, which holds the last target too.
    """

    rows: str
    train: int
    held_out: int
    positions: int
    shape: str = "llama"
    model: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 8192
    encoded: bool = True
    """Whether a peer gets token ids; else it encodes the texts itself, as burnish always does."""


def make(folder: Path, data: Data, settings: dict[str, dict[str, Any]], untimed: int, device: str) -> Given:
    """Write everything a side needs, and return the settings.

    Args:
        folder: an empty folder.
        settings: groups of burnish settings over those that all works share.
    """
    texts, held_out_texts = ROWS[data.rows](data)
    causal = "label" not in texts[0]
    model = decoder(folder, data) if causal else encoder(folder, data, sorted({row["label"] for row in texts}))
    write_lines(folder / "train.jsonl", texts)
    write_lines(folder / "held_out_texts.jsonl", held_out_texts)
    recipe = recipe_of(folder, causal, data, settings, device)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with own_cache() as scratch:
        session = prepared(folder / "recipe.yaml", folder / "train.jsonl", scratch)
        held_out = prepared(folder / "recipe.yaml", folder / "held_out_texts.jsonl", scratch)
        rows = encoded_rows(session)
        write_lines(folder / "held_out.jsonl", encoded_rows(held_out))
    write_lines(folder / "rows.jsonl", rows)
    plan, config = session.plan, session.config
    (folder / "order.json").write_text(json.dumps(order(plan, config, len(rows))))
    with quiet():
        freeze(model, config.freeze)
    given = Given(
        folder=folder,
        causal=causal,
        batch=config.train.batch,
        steps=plan.total_steps,
        lr=plan.lr,
        clip=config.optim.clip,
        frozen=[name for name, value in model.named_parameters() if not value.requires_grad],
        encoded=data.encoded,
        pad_id=0,
        untimed=untimed,
        threads=plan.threads,
        device=device,
    )
    values = {name: value for name, value in asdict(given).items() if name != "folder"}
    (folder / "given.json").write_text(json.dumps(values))
    return given


def recipe_of(
    folder: Path, causal: bool, data: Data, settings: dict[str, dict[str, Any]], device: str
) -> dict[str, Any]:
    """Return burnish's recipe: what the work asks, and nothing that a peer could not be told too."""
    recipe: dict[str, dict[str, Any]] = {
        "task": {"name": "text-generation" if causal else "text-classification"},
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "train.jsonl"), "holdout": "0%"},
        "optim": {"lr": LR, "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup": "0 steps"},
        "train": {"sequence": data.positions},
        "generate": {"max_tokens": 1},
        "checkpoint": {"every": "1000 hours"},
        "run": {"seed": 0, "threads": 1, "device": device},
    }
    if data.rows in ("prompts", "chat"):
        recipe["data"]["prompt"] = "prompt"
    for group, values in settings.items():
        recipe[group] = {**recipe.get(group, {}), **values}
    return recipe


def prepared(recipe: Path, rows: Path, scratch: Path) -> Session:
    """Return a session of the recipe that has encoded some rows and planned the run."""
    config, task, _ = resolve(str(recipe), {"data": {"train": str(rows)}})
    session = Session(config, task, RunFolder(scratch / "never begun"), Terminal(quiet=True))
    session.prepare()
    return session


def encoded_rows(session: Session) -> list[Example]:
    """Return the training rows of a session as peers take them."""
    store = session.stores["train"]
    return [peer_row(store[row]) for row in range(len(store))]


def peer_row(example: Any) -> Example:
    """Return an encoded row in transformers' terms: labels stand where their tokens are, and it shifts them itself."""
    ids = [int(number) for number in example["input_ids"]]
    if "label" in example:
        return {"input_ids": ids, "labels": int(example["label"][0])}
    first_target = int(example["context"][0]) + 1
    return {"input_ids": ids, "labels": [IGNORED] * first_target + ids[first_target:]}


def order(plan: Any, config: Any, size: int) -> list[int]:
    """Return the rows of the whole run as burnish orders them."""
    same = {"seed": config.run.seed, "batch": config.train.batch, "size": size, "total_rows": plan.total_rows}
    return [row for step in range(plan.total_steps) for row, _ in rows_of_step(step, **same)]


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# -- models ----------------------------------------------------------------------------------------------------------


def encoder(folder: Path, data: Data, labels: list[str]) -> Any:
    """Write and return the pretrained encoder with a new head and no dropout; with `data.model`, a small new one."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    source = ASSETS / "all-MiniLM-L6-v2"
    config = AutoConfig.from_pretrained(
        source,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **data.model,
    )
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification
    with quiet():
        model = kind.from_config(config) if data.model else kind.from_pretrained(source, config=config)
    return stored(folder, model, load_tokenizer(source))


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    "llama-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 50304, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip


def decoder(folder: Path, data: Data) -> Any:
    """Write and return a causal language model with fresh weights, and a tokenizer learned from Shakespeare."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SHAPES[data.shape], **data.model}))
    return stored(folder, model, tokenizer(data.vocabulary))


def stored(folder: Path, model: Any, its_tokenizer: Any) -> Any:
    """Write a model with its tokenizer, and return it."""
    with quiet():
        model.save_pretrained(folder / "model")
    its_tokenizer.save_pretrained(folder / "model")
    return model


@cache
def tokenizer(size: int) -> Any:
    """Return a byte-level BPE learned from Shakespeare; kept, because several works share it."""
    path = ROOT / "runs" / "benchmarks" / "tokenizers" / str(size)
    return load_tokenizer(path) if path.is_dir() else train_tokenizer(path, plays(), size)


# -- rows ------------------------------------------------------------------------------------------------------------


def plays() -> list[str]:
    """Return the texts of the Shakespeare asset."""
    return [path.read_text(encoding="utf-8") for path in sorted((ASSETS / "shakespeare").glob("*.txt"))]


class Reader:
    """Reads on through Shakespeare, a number of tokens at a time."""

    def __init__(self, vocabulary: int):
        self.tokenizer = tokenizer(vocabulary)
        self.ids = [token for text in plays() for token in self._encode(text)]
        self.place = 0

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def next(self, count: int) -> str:
        """Return the next text that has exactly so many tokens by itself; it may begin within a word."""
        for start, more in product(range(self.place, self.place + 9), range(9)):  # a cut word has other tokens
            end = start + count + more - 3
            text = self.tokenizer.decode(self.ids[start:end])
            if len(self._encode(text)) == count:
                self.place = end
                return text
        raise ValueError(f"no text of {count} tokens at token {self.place} of {len(self.ids)}")


Rows = tuple[list[Text], list[Text]]
"""Training and held-out rows."""


def sentiment(data: Data) -> Rows:
    """Return rated sentences of 3 to 200 tokens, in random order."""
    with open(ASSETS / "sentiment.csv", newline="", encoding="utf-8") as handle:
        rows = [{"text": row["text"], "label": row["label"]} for row in csv.DictReader(handle)]
    random.Random(0).shuffle(rows)
    return rows[: data.train], rows[data.train : data.train + data.held_out]


def stream(data: Data) -> Rows:
    """Return running text of as many full sequences as asked; an end token closes each text, which is one sequence."""
    reader = Reader(data.vocabulary)
    rows = [{"text": reader.next(data.positions - 1)} for _ in range(data.train + data.held_out)]
    return rows[: data.train], rows[data.train :]


def prompts(data: Data) -> Rows:
    """Return rows that fill a sequence, 70 % of each a prompt."""
    prompt = round(0.7 * data.positions)
    return pairs(data, lambda: (prompt, data.positions - prompt))


def chat(data: Data) -> Rows:
    """Return rows whose length varies as that of chats does: padded per batch, about half is padding."""
    draw = random.Random(0)

    def lengths() -> tuple[int, int]:
        total = min(max(round(data.positions * draw.lognormvariate(-1.64, 0.6)), 16), data.positions)
        prompt = round(total * draw.uniform(0.2, 0.6))
        return prompt, total - prompt

    return pairs(data, lengths)


def pairs(data: Data, lengths: Callable[[], tuple[int, int]]) -> Rows:
    """Return rows of a prompt and its text, of so many tokens each; an end token follows the text."""
    reader = Reader(data.vocabulary)
    rows = []
    for _ in range(data.train + data.held_out):
        prompt, text = lengths()
        rows.append({"prompt": reader.next(prompt), "text": reader.next(text)})
    return rows[: data.train], rows[data.train :]


ROWS: dict[str, Callable[[Data], Rows]] = {"sentiment": sentiment, "stream": stream, "prompts": prompts, "chat": chat}
