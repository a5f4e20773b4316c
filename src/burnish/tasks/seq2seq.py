"""Translation and summarization: learn to write one text from another, with an encoder and a decoder or a decoder alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.chat import end_of_turn, written
from burnish.data.tokenizer import encode_texts, fill_up, filled_up, pad_id
from burnish.errors import UserError
from burnish.generate.sample import generate_from
from burnish.task import Batch, Example, Records, Row, Task
from burnish.tasks.causal_lm import refuse_seeing_ahead

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_SHOWN = 12
#: Sources and targets of a batch are as long as one of this number, so that few shapes occur.
_MULTIPLE = 8
#: Most tokens of an answer in evaluations: this many for each token it is measured by, and some more.
_LONGEST, _LEAST = 2, 20
#: Fewest tokens of a text that a decoder must have room for.
_ROOM = 8
#: Stands for the text where it is asked how a text is written to a decoder.
_TEXT = "\N{SYMBOL FOR START OF TEXT}"


class Seq2SeqSettings(TaskSettings):
    """Write one text from another."""

    prefix: str = ""
    """What stands before every text, such as `translate English to German: ` for a T5, or what a chat model is asked."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target's probability that is spread evenly over the vocabulary."""


class Seq2Seq(Task):
    """What translation and summarization have in common. Source of the smoothing: Szegedy et al. 2016, section 7."""

    Settings = Seq2SeqSettings
    auto_class = "AutoModelForSeq2SeqLM"
    special_tokens = {"pad_token": "<pad>"}

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        if tokenizer.eos_token_id is None:
            raise UserError(
                "model.tokenizer: it has no token that ends a text, so an answer would never end. Take another."
            )

    @classmethod
    def suited(cls, config: Any, settings: Any) -> type[Task]:
        return cls if config.is_encoder_decoder else _by_decoder(cls)

    @classmethod
    def columns(cls, data: DataSettings) -> dict[str, str]:
        return {"text": data.text, "target": data.target}

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Seq2SeqSettings) -> dict[str, Any]:
        """Nothing is learned from the rows beforehand."""
        return {}

    def model_options(self) -> dict[str, Any]:
        return {"pad_token_id": pad_id(self.tokenizer)}

    def check(self, model: Any) -> None:
        """Say how answers begin where the model does not, and try how its logits can be computed."""
        from burnish.models.logits import whole_logits

        whole_logits(model)
        if getattr(model.config, "decoder_start_token_id", None) is None:
            model.config.decoder_start_token_id = pad_id(self.tokenizer)
            model.generation_config.decoder_start_token_id = pad_id(self.tokenizer)

    def cuts_long_rows(self) -> bool:
        return True

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        remaining = iter(rows)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            inputs = self._inputs([row.values["text"] for row in waiting], sequence)
            targets = [row.values["target"] for row in waiting]
            labels = self._ids(targets, sequence, as_target=True)
            for row, features, ids, text in zip(waiting, inputs, labels, targets, strict=True):
                yield {**features, "labels": ids, "target": _bytes(text)}, row.where

    def _inputs(self, texts: Sequence[str], sequence: int) -> list[Example]:
        return [{"input_ids": ids} for ids in self._ids([self.settings.prefix + text for text in texts], sequence)]

    def _ids(self, texts: Sequence[str], sequence: int, *, as_target: bool = False) -> list[np.ndarray]:
        """Return the ids of texts, each closed by the token that ends a text, cut to `sequence`."""
        switch = getattr(self.tokenizer, "_switch_to_target_mode", None) if as_target else None
        if switch:  # tokenizers with a vocabulary for each language
            switch()
        try:
            found = [row["input_ids"] for row in encode_texts(self.tokenizer, texts)]
        finally:
            if switch:
                self.tokenizer._switch_to_input_mode()
        end = self.tokenizer.eos_token_id
        bare = [ids[:-1] if len(ids) and ids[-1] == end else ids for ids in found]
        return [np.append(ids[: sequence - 1], end) for ids in bare]

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, examples, _MULTIPLE)
        labels, real = filled_up([example["labels"] for example in examples], pad_id(self.tokenizer), _MULTIPLE)
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        targets = {
            "ids": torch.from_numpy(labels),
            "labels": torch.from_numpy(labels[real]),
            "places": torch.from_numpy(np.flatnonzero(real)),
            "row": torch.from_numpy(np.nonzero(real)[0]),
        }
        targets |= _references(examples)
        lengths = [len(example["input_ids"]) for example in examples]
        return Batch(inputs, targets, {"loss": float(real.sum())}, lengths)

    def _given(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the model's inputs; the decoder sees the answer one position late."""
        shifted = batch.targets["ids"].roll(1, 1)
        shifted[:, 0] = model.config.decoder_start_token_id
        return {**batch.inputs, "decoder_input_ids": shifted}

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        from burnish.models.logits import logits_at, loss_sum

        labels, places = batch.targets["labels"], batch.targets["places"]
        if not self.settings.label_smoothing:
            return {"loss": loss_sum(model, self._given(model, batch), labels, places)}
        logits = logits_at(model, self._given(model, batch), places)
        smoothing = self.settings.label_smoothing
        return {"loss": functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)}

    def score(self, model: Any, batch: Batch) -> Records:
        from burnish.models.logits import losses

        labels, places = batch.targets["labels"], batch.targets["places"]
        rows = len(batch.inputs["input_ids"])
        nats = losses(model, self._given(model, batch), labels, places).double().cpu().numpy()
        row_of = batch.targets["row"].cpu().numpy()
        ends = batch.targets["sizes"].cumsum(0).tolist()
        whole = batch.targets["texts"].cpu().numpy().tobytes()
        truth = [whole[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        return {
            "nats": np.bincount(row_of, nats, rows),
            "targets": np.bincount(row_of, minlength=rows),
            "truth": _texts(truth),
        }

    def write(self, model: Any, batch: Batch) -> Records:
        asked = self._asked(batch)
        settings = GenerateSettings(max_tokens=_LEAST + _LONGEST * self._measure(batch, asked["input_ids"].shape[1]))
        answers = generate_from(model, self.tokenizer, asked, settings, 0, self._end)
        return {"answer": _texts([answer.strip() for answer in answers]), "source": _texts(self._sources(batch))}

    def _measure(self, batch: Batch, read: int) -> int:
        """Return by how many tokens the longest answers of a batch are measured in evaluations: those that are read."""
        return read

    def _asked(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return what stands before the answers of a batch."""
        return batch.inputs

    def _sources(self, batch: Batch) -> list[str]:
        return self.tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)

    @property
    def _end(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    def _token_metrics(self, records: Records) -> dict[str, float]:
        loss = float(records["nats"].sum()) / max(float(records["targets"].sum()), 1.0)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    def figures(self, records: Records) -> list[dict[str, Any]]:
        chosen = np.linspace(0, len(records["answer"]) - 1, min(_SHOWN, len(records["answer"]))).astype(int)
        rows = [[records[name][row] for name in ("source", "answer", "truth")] for row in chosen]
        columns = ["text", "answer", "reference"]
        return [{"kind": "table", "title": "Answers", "columns": columns, "rows": rows}]

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        answers = []
        limit = self._most_read(
            min(self.tokenizer.model_max_length, longest_sequence(model.config) or 10_000), settings
        )
        for number, given in enumerate(asked):  # each by itself, so an answer does not depend on what else was asked
            filled, _ = fill_up(self.tokenizer, self._inputs([given["text"]], limit))
            inputs = {name: torch.from_numpy(values).to(model.device) for name, values in filled.items()}
            [answer] = generate_from(model, self.tokenizer, inputs, settings, seed * 1_000_003 + number, self._end)
            answers.append({"text": given["text"], "answer": answer.strip()})
        return answers

    def _most_read(self, positions: int, settings: GenerateSettings) -> int:
        """Return how many tokens of a text are read by a model with so many positions."""
        return positions


class _ByDecoder(Seq2Seq):
    """The same by a decoder alone: the text is a user's message, or a paragraph, and the answer follows it."""

    auto_class = "AutoModelForCausalLM"

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Seq2SeqSettings) -> dict[str, Any]:
        return {"decoder": True}  # its rows are encoded otherwise

    def model_options(self) -> dict[str, Any]:
        return {}

    def check(self, model: Any) -> None:
        from burnish.models.logits import whole_logits

        refuse_seeing_ahead(model)
        whole_logits(model)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens before and after a text."""
        asked = f"{_TEXT}\n"
        if self.tokenizer.chat_template:
            message = {"role": "user", "content": _TEXT}
            asked = written(self.tokenizer, [message], answer_follows=True, where="the template")
        before, _, after = asked.partition(_TEXT)
        return self._plain(before), self._plain(after)

    @cached_property
    def _end(self) -> int:
        found = end_of_turn(self.tokenizer) if self.tokenizer.chat_template else None
        return self.tokenizer.eos_token_id if found is None else found

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        """Yield each row as text and answer, where the text is cut if need be, and the answer at half of the sequence."""
        for row in rows:
            target = row.values["target"]
            answer = [*self._plain(target)[: sequence // 2], self._end]
            [asked] = self._inputs([row.values["text"]], sequence + 1 - len(answer))
            ids = np.append(asked["input_ids"], answer)
            yield {"input_ids": ids, "asked": np.array([len(ids) - len(answer)]), "target": _bytes(target)}, row.where

    def _inputs(self, texts: Sequence[str], sequence: int) -> list[Example]:
        before, after = self._frame
        room = sequence - len(before) - len(after)
        if room < _ROOM:
            raise UserError(
                f"train.sequence: with the answer, {len(before) + len(after)} tokens around the text leave it too little "
                f"room; give {_ROOM - room} more."
            )
        texts = [self.settings.prefix + text for text in texts]
        return [{"input_ids": np.array([*before, *self._plain(text)[:room], *after])} for text in texts]

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        ids, begins = [example["input_ids"] for example in examples], [int(example["asked"][0]) for example in examples]
        inputs, _ = filled_up([row[:-1] for row in ids], pad_id(self.tokenizer), _MULTIPLE)
        answers = [row[begin:] for row, begin in zip(ids, begins, strict=True)]
        longest = inputs.shape[1]
        places = [row * longest + begin - 1 + np.arange(len(answers[row])) for row, begin in enumerate(begins)]
        # No attention mask: padding stands on the right, where causal attention never looks, and has no target.
        targets = {
            "labels": torch.from_numpy(np.concatenate(answers).astype(np.int64)),
            "places": torch.from_numpy(np.concatenate(places)),
            "row": torch.from_numpy(np.repeat(np.arange(len(ids)), [len(answer) for answer in answers])),
            "begins": torch.tensor(begins),
            **_references(examples),
        }
        lengths = [len(row) - 1 for row in ids]
        return Batch({"input_ids": torch.from_numpy(inputs)}, targets, {"loss": float(len(targets["labels"]))}, lengths)

    def _given(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return batch.inputs

    def _prompts(self, batch: Batch) -> list[np.ndarray]:
        ids = batch.inputs["input_ids"].cpu().numpy()
        return [row[:begin] for row, begin in zip(ids, batch.targets["begins"].tolist(), strict=True)]

    def _asked(self, batch: Batch) -> dict[str, torch.Tensor]:
        import torch

        turned = [prompt[::-1] for prompt in self._prompts(batch)]  # to be padded on the left
        ids, real = (part[:, ::-1].copy() for part in filled_up(turned, pad_id(self.tokenizer)))
        device = batch.inputs["input_ids"].device
        found = {"input_ids": ids, "attention_mask": real.astype(np.int64)}
        return {name: torch.from_numpy(values).to(device) for name, values in found.items()}

    def _sources(self, batch: Batch) -> list[str]:
        before, after = map(len, self._frame)
        return self.tokenizer.batch_decode([prompt[before : len(prompt) - after] for prompt in self._prompts(batch)])

    def _most_read(self, positions: int, settings: GenerateSettings) -> int:
        return max(positions - settings.max_tokens, sum(map(len, self._frame)) + _ROOM)


@cache
def _by_decoder(task: type[Seq2Seq]) -> type[Seq2Seq]:
    return type(task.__name__, (_ByDecoder, task), {"__doc__": task.__doc__})


class Translation(Seq2Seq):
    """Translate texts. Judged by chrF (Popovic 2015) and BLEU (Papineni et al. 2002) as sacreBLEU computes them."""

    name = "translation"
    metric_names = ("chrf", "bleu", "loss", "perplexity")
    lower_is_better = frozenset({"loss", "perplexity"})

    def join(self, records: Records) -> Records:
        """Add the counts of each row from which sacreBLEU computes its figures of many."""
        answers, truth = records["answer"].tolist(), [records["truth"].tolist()]
        counts = {
            f"{name}_counts": np.array(metric._extract_corpus_statistics(answers, truth), np.float64)
            for name, metric in _sacrebleu().items()
        }
        return records | counts

    def metrics(self, records: Records) -> dict[str, float]:
        """chrF and BLEU of greedy answers (0 to 100), mean loss and perplexity of the reference's tokens."""
        judges = _sacrebleu()
        return {
            "chrf": judges["chrf"]._compute_f_score(records["chrf_counts"].sum(0).tolist()),
            "bleu": judges["bleu"]._compute_score_from_stats(records["bleu_counts"].sum(0).astype(int).tolist()).score,
            **self._token_metrics(records),
        }

    def figures(self, records: Records) -> list[dict[str, Any]]:
        rows = [[name, str(judge.get_signature())] for name, judge in _sacrebleu(records["truth"].tolist()).items()]
        signatures = {
            "kind": "table",
            "title": "sacreBLEU signatures",
            "columns": ["metric", "signature"],
            "rows": rows,
        }
        return [*super().figures(records), signatures]


class Summarization(Seq2Seq):
    """Summarise texts. Judged by ROUGE (Lin 2004), F-measures of words, pairs of words and longest common subsequences."""

    name = "summarization"
    metric_names = ("rouge1", "rouge2", "rougeL", "loss", "perplexity")
    lower_is_better = frozenset({"loss", "perplexity"})

    def _measure(self, batch: Batch, read: int) -> int:
        """Return the tokens of the longest reference: a summary's length does not follow that of its text."""
        return int(batch.targets["row"].bincount().max())

    def join(self, records: Records) -> Records:
        """Add the ROUGE of each row."""
        from torchmetrics.functional.text import rouge_score

        kinds = ("rouge1", "rouge2", "rougeL")
        found = [
            rouge_score(answer, truth, rouge_keys=kinds)
            for answer, truth in zip(records["answer"], records["truth"], strict=True)
        ]
        return records | {kind: np.array([float(row[f"{kind}_fmeasure"]) for row in found]) for kind in kinds}

    def metrics(self, records: Records) -> dict[str, float]:
        """Mean ROUGE F-measures of greedy answers (0 to 1), mean loss and perplexity of the reference's tokens."""
        means = {kind: float(records[kind].mean()) for kind in ("rouge1", "rouge2", "rougeL")}
        return means | self._token_metrics(records)


def _sacrebleu(truth: list[str] | None = None) -> dict[str, Any]:
    """Return sacreBLEU's metrics by name; with references, so that they can say their signature."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references = None if truth is None else [truth]
    return {"chrf": CHRF(references=references), "bleu": BLEU(references=references)}


def _references(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return the texts of the targets as bytes, with their lengths, so that they can be told apart."""
    import torch

    texts = [example["target"].tobytes() for example in examples if "target" in example]
    if not texts:
        return {}
    joined = np.frombuffer(b"".join(texts), np.uint8).copy()
    return {"texts": torch.from_numpy(joined), "sizes": torch.tensor([len(text) for text in texts])}


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _texts(texts: Sequence[str]) -> np.ndarray:
    """Return texts as an array of objects, which holds them whole."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array
