"""Translation and summarization: learn to write one text from another, with an encoder and a decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import DataSettings, GenerateSettings, TaskSettings
from burnish.data.tokenizer import encode_texts, fill_up, filled_up, pad_id
from burnish.errors import UserError
from burnish.generate.sample import generate_from
from burnish.task import Batch, Example, Records, Row, Task

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
_SHOWN = 12
#: Sources and targets of a batch are as long as one of this number, so that few shapes occur.
_MULTIPLE = 8
#: Most tokens of an answer in evaluations, by those of its source.
_LONGEST, _LEAST = 2.0, 20


class Seq2SeqSettings(TaskSettings):
    """Write one text from another."""

    prefix: str = ""
    """What stands before every text, such as `translate English to German: ` for a T5."""
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
        texts = [example["target"].tobytes() for example in examples if "target" in example]
        if texts:  # with their lengths, so that they can be told apart
            targets["texts"] = torch.from_numpy(np.frombuffer(b"".join(texts), np.uint8).copy())
            targets["sizes"] = torch.tensor([len(text) for text in texts])
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
        rows, longest = batch.inputs["input_ids"].shape
        nats = losses(model, self._given(model, batch), labels, places).double().cpu().numpy()
        row_of = batch.targets["row"].cpu().numpy()
        ends = batch.targets["sizes"].cumsum(0).tolist()
        whole = batch.targets["texts"].cpu().numpy().tobytes()
        truth = [whole[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        most = int(_LEAST + _LONGEST * longest)
        answers = generate_from(model, self.tokenizer, batch.inputs, GenerateSettings(max_tokens=most), 0)
        return {
            "nats": np.bincount(row_of, nats, rows),
            "targets": np.bincount(row_of, minlength=rows),
            "answer": _texts([answer.strip() for answer in answers]),
            "truth": _texts(truth),
            "source": _texts(self.tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)),
        }

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
        limit = min(self.tokenizer.model_max_length, longest_sequence(model.config) or 10_000)
        for number, given in enumerate(asked):  # each by itself, so an answer does not depend on what else was asked
            filled, _ = fill_up(self.tokenizer, self._inputs([given["text"]], limit))
            inputs = {name: torch.from_numpy(values).to(model.device) for name, values in filled.items()}
            [answer] = generate_from(model, self.tokenizer, inputs, settings, seed * 1_000_003 + number)
            answers.append({"text": given["text"], "answer": answer.strip()})
        return answers


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


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _texts(texts: Sequence[str]) -> np.ndarray:
    """Return texts as an array of objects, which holds them whole."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array
