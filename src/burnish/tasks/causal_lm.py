"""Text generation: learn to predict the next token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings, TaughtSettings
from burnish.data.chat import answers, conversation, end_of_turn, set_template, written
from burnish.data.new_tokens import opened, opening_ids
from burnish.errors import UserError
from burnish.generate.rank import check_ratings, ranked
from burnish.generate.sample import TEMPERATURE, generate
from burnish.task import Batch, Example, FrozenModel, Records, Row, Task

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_LEAST_ROOM = 8


class CausalLmSettings(TaughtSettings):
    """Predict the next token of running text."""

    context: float = Field(0.5, ge=0, lt=1)
    """Share of each evaluated sequence that is given as context, not scored, so that no token is scored without any."""
    template: str | None = None
    """How a conversation is written out: `chatml`, or a file with a Jinja template. Default: the tokenizer's own."""
    rates: bool = False
    """The prompts teach to answer and to rate, as LaMDA's do; `predict` then ranks several answers by their ratings."""
    teacher_top: int = Field(32, ge=1)
    """How many of the teacher's likeliest tokens are kept at each place, 8 bytes each; all others count as one."""
    prompts: tuple[str, ...] = ()
    """Three beginnings the report continues. Default: taken from the validation text."""


class TextGeneration(Task):
    """Learn to predict running text, or answers to prompts.

    Texts are laid end to end, each closed by the end-of-text token, and cut into sequences of equal length. Every token
    is a target exactly once: a sequence carries one token more than it has positions, its last token is the next one's
    first. In evaluation the sequences overlap by `context`, and each token is still scored once.

    With a prompt column (`data.prompt`) each row is a sequence of its own: the prompt, then the text and the end-of-text
    token, and only these two are targets. With conversations (`data.messages`) only what the assistant writes is, the mark
    that ends its turn included.

    A mixture of experts has a second term, `router`, by which its experts are used alike; its targets are rows.
    """

    name = "text-generation"
    version = 4
    Settings = CausalLmSettings
    auto_class = "AutoModelForCausalLM"
    asks = ("messages", "text")
    takes_prompt = True
    metric_names = ("bits_per_byte", "loss", "perplexity")
    lower_is_better = frozenset({"loss", "perplexity", "bits_per_byte"})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        self._routes = False
        if self.settings.template:
            set_template(tokenizer, self.settings.template)

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        if data.messages:
            return {"messages": data.messages}
        return ({"prompt": data.prompt} if data.prompt else {}) | {"text": data.text}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Keep three prompts, or the beginnings of three texts, for the report."""
        if settings.rates:
            check_ratings(rows)
        prompts: list[str] = []
        paired = chats = False
        for row in rows:
            if "messages" in row.values:
                chats = True
                prompts.append(conversation(row.values["messages"], row.where)[0]["content"])
                if len(prompts) == 3:
                    break
                continue
            paired = "prompt" in row.values
            words = row.values["text"].split()
            if paired:
                prompts.append(str(row.values["prompt"]))
            elif len(words) >= 12:
                prompts.append(" ".join(words[:6]))
            if len(prompts) == 3:
                break
        return {"prompts": prompts, "paired": paired, "chats": chats}

    def asked_columns(self, data: DataSettings) -> dict[str, str]:
        if "messages" in self.asks and self._answers_chats():
            return {"messages": data.messages or "messages"}
        return super().asked_columns(data)

    def cuts_long_rows(self) -> bool:
        return self.facts.get("paired", False) or self.facts.get("chats", False)

    def check(self, model: Any) -> None:
        """Refuse a model that sees the tokens it should predict; find out whether it has experts to be balanced."""
        from burnish.models.logits import whole_logits
        from burnish.models.router import routers

        refuse_seeing_ahead(model)
        whole_logits(model)
        self._routes = bool(routers(model))

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        first = opening_ids(self.tokenizer)
        room = sequence - len(first)
        if room < _LEAST_ROOM:
            raise UserError(
                f"train.sequence: {sequence} leaves no room for text; give at least {len(first) + _LEAST_ROOM}."
            )
        end = self.tokenizer.eos_token_id
        if end is None:
            end = self.tokenizer.sep_token_id or 0
        if self.facts.get("chats"):
            yield from self._chats(rows, sequence)
            return
        if self.facts.get("paired"):
            yield from self._pairs(rows, sequence, end)
            return
        stride = room if training else max(1, room - int(room * self.settings.context))
        ids: list[int] = [end]  # the context of the very first token
        bytes_at: list[int] = [0]
        places: list[str] = [""]
        scored = 1  # tokens before this position are context
        for tokens, size, where in self._texts(rows, end):
            ids += tokens
            # A row's bytes are spread over its tokens, so that each sequence counts about its own.
            edges = [size * i // len(tokens) for i in range(len(tokens) + 1)]
            bytes_at += [after - before for before, after in pairwise(edges)]
            places += [where] * len(tokens)
            while len(ids) > room:
                yield self._example(first, ids, bytes_at, places, room + 1, scored)
                scored = 1 + room - stride
                del ids[:stride], bytes_at[:stride], places[:stride]
        if len(ids) > scored:
            yield self._example(first, ids, bytes_at, places, len(ids), scored)

    def _example(
        self, first: list[int], ids: list[int], bytes_at: list[int], places: list[str], length: int, scored: int
    ) -> tuple[Example, str]:
        example = {
            "input_ids": np.array(first + ids[:length]),
            "context": np.array([len(first) + scored - 1]),
            "bytes": np.array([sum(bytes_at[scored:length])]),
        }
        return example, places[scored]

    def _pairs(self, rows: Iterable[Row], sequence: int, end: int) -> Iterator[tuple[Example, str]]:
        """Yield each row as an example of its own, whose prompt is context.

        Raises:
            UserError: a prompt leaves no room for its text.
        """
        remaining, first = iter(rows), opening_ids(self.tokenizer)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            texts = [row.values["text"] for row in waiting]
            prompts = self._ids([opened(self.tokenizer, str(row.values["prompt"])) for row in waiting])
            for row, before, after in zip(waiting, prompts, self._ids(texts), strict=True):
                before = before if len(before) > len(first) else [*first, end]
                if len(before) > sequence:
                    raise UserError(
                        f"{row.where}: the prompt has {len(before):,} tokens, which leaves no room for the text in a "
                        f"sequence of {sequence}. Give a larger --train.sequence, or shorten the prompt."
                    )
                ids = [*before, *after, end][: sequence + 1]
                kept = (len(ids) - len(before)) / (len(after) + 1)
                example = {
                    "input_ids": np.array(ids),
                    "context": np.array([len(before) - 1]),
                    "bytes": np.array([round(len(row.values["text"].encode()) * kept)]),
                }
                yield example, row.where

    def _chats(self, rows: Iterable[Row], sequence: int) -> Iterator[tuple[Example, str]]:
        """Yield each conversation, or each answer of it, with the tokens the assistant writes as targets.

        Raises:
            UserError: no answer begins within `sequence` tokens.
        """
        for row in rows:
            messages = conversation(row.values["messages"], row.where)
            for text, stretches in answers(self.tokenizer, messages, row.where):
                found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                ids, starts = found["input_ids"][: sequence + 1], [start for start, _ in found["offset_mapping"]]
                scored = [any(first <= start < end for first, end in stretches) for start in starts[: len(ids)]]
                if not any(scored[1:]):
                    raise UserError(
                        f"{row.where}: no answer begins within {sequence} tokens. Give a larger --train.sequence, or "
                        "shorten the conversation."
                    )
                size = sum(len(text[first:end].encode()) for first, end in stretches)
                kept = sum(scored) / sum(any(a <= start < b for a, b in stretches) for start in starts)
                example = {
                    "input_ids": np.array(ids),
                    "scored": np.array(scored, np.uint8),
                    "bytes": np.array([round(size * kept)]),
                }
                yield example, row.where

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in found["input_ids"]]

    def _texts(self, rows: Iterable[Row], end: int) -> Iterator[tuple[list[int], int, str]]:
        """Yield the tokens of each row, its size in bytes and its place; a document's last row closes it with `end`."""
        waiting: list[Row] = []

        def encoded(next_row: Row | None) -> Iterator[tuple[list[int], int, str]]:
            texts = [row.values["text"] for row in waiting]
            documents = [row.document for row in waiting] + [next_row.document if next_row else None]
            for index, tokens in enumerate(self._ids(texts)):
                goes_on = documents[index] is not None and documents[index] == documents[index + 1]
                tokens = tokens if goes_on else [*tokens, end]
                if tokens:
                    yield tokens, len(texts[index].encode()), waiting[index].where

        for row in rows:
            if len(waiting) == _ENCODED_AT_ONCE:
                yield from encoded(row)
                waiting.clear()
            waiting.append(row)
        yield from encoded(None)

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        lengths = [len(example["input_ids"]) - 1 for example in examples]
        longest = max(lengths)
        inputs = np.zeros((len(examples), longest), np.int64)
        labels, places = [], []
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            ids = example["input_ids"]
            scored = (
                np.flatnonzero(example["scored"][1:])
                if "scored" in example
                else np.arange(int(example["context"][0]), length)
            )
            inputs[row, :length] = ids[:-1]
            labels.append(ids[1 + scored])
            places.append(scored + row * longest)
        # No attention mask: padding stands on the right, where causal attention never looks, and has no target.
        targets = {
            "labels": torch.from_numpy(np.concatenate(labels).astype(np.int64)),
            "places": torch.from_numpy(np.concatenate(places)),
            "bytes": torch.tensor([int(example["bytes"][0]) for example in examples]),
        }
        weights = {"loss": float(len(targets["labels"]))} | ({"router": float(len(lengths))} if self._routes else {})
        if "remembered" in examples[0]:
            targets["remembered"] = torch.from_numpy(np.concatenate([one["remembered"] for one in examples]))
            weights["teacher"] = weights["loss"]
        return Batch({"input_ids": torch.from_numpy(inputs)}, targets, weights, lengths)

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from burnish.models.router import Routed

        if not self._routes or batch.lengths is None:
            return self._own_losses(model, batch)
        with Routed(model).seen() as routed:
            losses = self._own_losses(model, batch)
        return {**losses, "router": routed.loss(batch.lengths)}

    def _own_losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the sum of the targets' losses and, with a teacher, of their distances from its predictions."""
        from burnish.models.logits import logits_at, loss_sum

        labels, places = batch.targets["labels"], batch.targets["places"]
        if "remembered" not in batch.targets:
            return {"loss": loss_sum(model, batch.inputs, labels, places)}
        from torch.nn.functional import cross_entropy

        from burnish.ops.distillation import top_losses

        share, logits = self.settings.teacher_weight, logits_at(model, batch.inputs, places)
        apart = top_losses(logits, batch.targets["remembered"], self.settings.teacher_temperature).sum()
        return {"loss": (1 - share) * cross_entropy(logits, labels, reduction="sum"), "teacher": share * apart}

    def frozen_model(self) -> FrozenModel | None:
        if self.settings.teacher is None:
            return None
        options = {"top": self.settings.teacher_top, "temperature": self.settings.teacher_temperature}
        return FrozenModel(self.settings.teacher, "task.teacher", options, scores=False)

    def remember(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the teacher's likeliest tokens at each target of each row, as `top_of` does: [targets, 2 * top + 1]."""
        from burnish.models.logits import logits_at
        from burnish.ops.distillation import top_of

        places, (rows, longest) = batch.targets["places"], batch.inputs["input_ids"].shape
        logits = logits_at(model, batch.inputs, places)
        counts = (places // longest).bincount(minlength=rows).tolist()
        return top_of(logits, self.settings.teacher_top, self.settings.teacher_temperature).split(counts)

    def score(self, model: Any, batch: Batch) -> Records:
        from burnish.models.logits import losses

        places = batch.targets["places"]
        found = losses(model, batch.inputs, batch.targets["labels"], places).double().cpu().numpy()
        rows, longest = batch.inputs["input_ids"].shape
        row_of = places.cpu().numpy() // longest
        return {
            "nats": np.bincount(row_of, found, rows),
            "targets": np.bincount(row_of, minlength=rows),
            "bytes": batch.targets["bytes"].cpu().numpy(),
        }

    def metrics(self, records: Records) -> dict[str, float]:
        """Mean loss and perplexity per token, and bits per byte, which does not depend on the tokenizer."""
        nats, targets, size = (float(records[name].sum()) for name in ("nats", "targets", "bytes"))
        loss = nats / max(targets, 1)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "bits_per_byte": nats / math.log(2) / max(size, 1),
        }

    def samples(self, model: Any, settings: GenerateSettings) -> list[dict[str, Any]]:
        prompts = list(self.settings.prompts or self.facts.get("prompts", []))[:3] or [""]
        rows = []
        for temperature in (0.0, settings.temperature or TEMPERATURE):
            chosen = settings.model_copy(update={"temperature": temperature})
            for prompt, text in zip(prompts, self._continued(model, prompts, chosen, seed=0), strict=True):
                rows.append({"prompt": prompt, "temperature": temperature, "text": text})
        return [{"kind": "texts", "title": "Generated text", "rows": rows}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        asked_for = [given.get("messages", given.get("text", "")) for given in asked]
        if self.settings.rates:
            return [self._ranked(model, text, settings, seed) for text in asked_for]
        found = self._continued(model, asked_for, settings, seed)
        name = "messages" if self._answers_chats() else "text"
        return [{name: given, "generated": answer} for given, answer in zip(asked_for, found, strict=True)]

    def _ranked(self, model: Any, text: str, settings: GenerateSettings, seed: int) -> dict[str, Any]:
        """Return the best of several answers that are safe enough (none: no answer), and all of them."""
        found = ranked(model, self.tokenizer, text, settings, seed)
        best = found[0]["text"] if found and found[0]["safe"] else ""
        return {"text": text, "generated": best, "candidates": found}

    def _answers_chats(self) -> bool:
        """Return whether a text is a message: as the training rows were, else if the model comes with a template."""
        return self.facts.get("chats", self.tokenizer.chat_template is not None)

    def _continued(self, model: Any, prompts: Sequence[Any], settings: GenerateSettings, seed: int) -> list[str]:
        """Return what follows each text, or the assistant's answer to each conversation (a text is one message)."""
        if not self._answers_chats():
            return generate(model, self.tokenizer, prompts, settings, seed)
        chats = [conversation(prompt, f"Input {number}") for number, prompt in enumerate(prompts, 1)]
        texts = [written(self.tokenizer, chat, answer_follows=True, where="the input") for chat in chats]
        return generate(model, self.tokenizer, texts, settings, seed, end=end_of_turn(self.tokenizer))


def refuse_seeing_ahead(model: Any) -> None:
    """Look whether the model is a decoder.

    Raises:
        UserError: it sees the tokens it should predict.
    """
    import torch

    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        first, second = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    model.train(was_training)
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise UserError(
            f"model: {type(model).__name__} sees later tokens, so it cannot learn to predict them. "
            "Take a decoder, such as a GPT-2 or a Llama."
        )
