"""Fill-mask: learn to guess hidden tokens from both sides, as BERT is pretrained."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import GenerateSettings, TaskSettings
from burnish.data.tokenizer import fill_up
from burnish.errors import UserError
from burnish.task import Batch, Example, Records, Row, Task

if TYPE_CHECKING:
    import torch

_ENCODED_AT_ONCE = 1000
#: Of the tokens chosen, the share that is hidden behind the mask, and that is replaced by any token; others stay.
_HIDDEN, _REPLACED = 0.8, 0.1
_BEST = 5
_MASKS = ("[MASK]", "<mask>")


#: Share of the tokens that are hidden where a model is evaluated, so that runs compare.
EVALUATED = 0.15


class MaskedLmSettings(TaskSettings):
    """Guess hidden tokens from both sides."""

    masked: float = Field(EVALUATED, gt=0, lt=1)
    """Share of the tokens that are to be guessed in training; evaluations always hide 15 %."""
    whole_words: bool = False
    """Choose whole words instead of single tokens."""
    pseudo_perplexity: bool = False
    """In evaluations also hide each token alone, which takes as many passes as a text has tokens."""


class FillMask(Task):
    """Guess hidden tokens from both sides.

    Texts are laid end to end, a separator after each, and cut into sequences between the tokenizer's first and last
    token. In each epoch other tokens are chosen, by (seed, epoch, sequence) alone: of them 80 % are hidden, 10 % replaced
    by any token, 10 % stay. Evaluations choose by the sequence's content, so they never change.

    Source: Devlin et al. 2019, section 3.1; whole words: google-research/bert, 2019; pseudo-perplexity: Salazar et al.
    2020, equation 2.
    """

    name = "fill-mask"
    Settings = MaskedLmSettings
    auto_class = "AutoModelForMaskedLM"
    special_tokens = {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>", "pad_token": "<pad>"}
    metric_names = ("accuracy", "loss", "perplexity")
    lower_is_better = frozenset({"loss", "perplexity", "pseudo_perplexity"})

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        if self.settings.pseudo_perplexity:
            self.metric_names = ("accuracy", "loss", "perplexity", "pseudo_perplexity")
        if tokenizer.mask_token_id is None:
            raise UserError(
                "model.tokenizer: it has no mask token, so nothing can be hidden. Take an encoder such as BERT, or a preset."
            )
        self._special = np.array(sorted(set(tokenizer.all_special_ids)))
        self._words = np.setdiff1d(np.arange(len(tokenizer)), self._special)

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: MaskedLmSettings) -> dict[str, Any]:
        """Keep the beginnings of three texts, in which the report hides a word."""
        texts = (row.values["text"].split() for row in rows)
        return {"texts": [" ".join(words[:16]) for words in islice((w for w in texts if len(w) >= 8), 3)]}

    def model_options(self) -> dict[str, Any]:
        return {"pad_token_id": self.tokenizer.pad_token_id, "is_decoder": False}

    def check(self, model: Any) -> None:
        """Try how the model's logits can be computed."""
        from burnish.models.logits import whole_logits

        whole_logits(model)

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        before, after = self._frame()
        room = sequence - len(before) - len(after)
        if room < 1:
            raise UserError(f"train.sequence: {sequence} leaves no room for text; give at least {sequence - room + 8}.")
        ids: list[int] = []
        starts: list[int] = []
        places: list[str] = []
        remaining = iter(rows)
        while waiting := list(islice(remaining, _ENCODED_AT_ONCE)):
            found = self.tokenizer(
                [row.values["text"] for row in waiting],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for number, row in enumerate(waiting):
                ids += [*found["input_ids"][number], *after]
                starts += [*self._word_starts(found, number), *[1] * len(after)]
                places += [row.where] * (len(ids) - len(places))
            while len(ids) >= room:
                yield self._example(before, ids[:room], after, starts[:room]), places[0]
                del ids[:room], starts[:room], places[:room]
        if len(ids) > len(after):
            yield self._example(before, ids, after, starts), places[0]

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that stand before and after every sequence."""
        framed = self.tokenizer("a", return_attention_mask=False, return_token_type_ids=False)["input_ids"]
        inner = self.tokenizer("a", add_special_tokens=False, return_attention_mask=False)["input_ids"]
        first = next((i for i in range(len(framed)) if framed[i : i + len(inner)] == inner), 0)
        return framed[:first], framed[first + len(inner) :]

    def _word_starts(self, found: Any, number: int) -> list[int]:
        if not self.settings.whole_words:
            return [1] * len(found["input_ids"][number])
        words = found.word_ids(number)
        return [int(i == 0 or word != words[i - 1]) for i, word in enumerate(words)]

    def _example(self, before: list[int], ids: list[int], after: list[int], starts: list[int]) -> Example:
        return {
            "input_ids": np.array([*before, *ids, *after]),
            "starts": np.array([*[1] * len(before), 1, *starts[1:], *[1] * len(after)]),
        }

    def vary(self, example: Example, draw: int, following: Example | None = None) -> Example:
        """Return the example with tokens chosen, and most of them hidden."""
        return self._hidden(example, draw, self.settings.masked)

    def _hidden(self, example: Example, draw: int, share: float) -> Example:
        random = np.random.Generator(np.random.Philox(draw))
        ids = np.array(example["input_ids"], np.int64)
        usable = ~np.isin(ids, self._special)
        word = np.cumsum(example["starts"].astype(bool)) - 1
        words = np.unique(word[usable])
        wanted = max(1, round(share * int(usable.sum())))
        sizes = np.bincount(word[usable], minlength=int(word[-1]) + 1)
        order = random.permutation(words)
        chosen = order[np.cumsum(sizes[order]) - sizes[order] < wanted]  # up to the word that reaches the share
        places = np.flatnonzero(usable & np.isin(word, chosen))
        how, other = random.random(len(places)), random.choice(self._words, len(places))
        labels = ids[places]
        ids[places] = np.select(
            [how < _HIDDEN, how < _HIDDEN + _REPLACED], [self.tokenizer.mask_token_id, other], labels
        )
        return {"input_ids": ids, "places": places, "labels": labels}

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        plain = [example["input_ids"] for example in examples]
        varied = [
            example
            if "labels" in example
            else self._hidden(example, zlib.crc32(example["input_ids"].astype("<i8").tobytes()), EVALUATED)
            for example in examples
        ]
        filled, _ = fill_up(self.tokenizer, varied)
        longest = filled["input_ids"].shape[1]
        places = [example["places"] + row * longest for row, example in enumerate(varied)]
        labels = [example["labels"] for example in varied]
        targets = {
            "labels": torch.from_numpy(np.concatenate(labels).astype(np.int64)),
            "places": torch.from_numpy(np.concatenate(places)),
            "plain": torch.from_numpy(filled["input_ids"]).flatten().index_put(
                (torch.from_numpy(np.concatenate(places)),), torch.from_numpy(np.concatenate(labels).astype(np.int64))
            ).view(-1, longest),
        }  # fmt: skip
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        return Batch(inputs, targets, {"loss": float(len(targets["labels"]))}, [len(ids) for ids in plain])

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        from burnish.models.logits import loss_sum

        return {"loss": loss_sum(model, batch.inputs, batch.targets["labels"], batch.targets["places"])}

    def score(self, model: Any, batch: Batch) -> Records:
        from burnish.models.logits import logits_at

        labels, places = batch.targets["labels"], batch.targets["places"]
        rows, longest = batch.inputs["input_ids"].shape
        row_of = (places // longest).cpu().numpy()
        scores = logits_at(model, batch.inputs, places).log_softmax(-1)
        nats = -scores.gather(1, labels[:, None])[:, 0].double().cpu().numpy()
        right = (scores.argmax(-1) == labels).cpu().numpy()
        records = {
            "nats": np.bincount(row_of, nats, rows),
            "right": np.bincount(row_of, right, rows),
            "targets": np.bincount(row_of, minlength=rows),
        }
        if self.settings.pseudo_perplexity:
            alone = [self._alone(model, batch, row) for row in range(rows)]
            records |= {
                "alone": np.array([nats for nats, _ in alone]),
                "tokens": np.array([count for _, count in alone]),
            }
        return records

    def _alone(self, model: Any, batch: Batch, row: int) -> tuple[float, int]:
        """Return the summed loss of a sequence's tokens, each hidden alone, and how many they are."""
        import torch

        ids = batch.targets["plain"][row : row + 1]
        real = batch.inputs["attention_mask"][row].bool().cpu() & torch.from_numpy(
            ~np.isin(ids[0].cpu().numpy(), self._special)
        )
        places = real.nonzero()[:, 0].to(ids.device)
        total = 0.0
        for some in places.split(64):
            hidden = ids.repeat(len(some), 1)
            hidden[torch.arange(len(some)), some] = self.tokenizer.mask_token_id
            mask = batch.inputs["attention_mask"][row : row + 1].expand(len(some), -1)
            logits = model(input_ids=hidden, attention_mask=mask).logits[torch.arange(len(some)), some].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, some], reduction="sum"))
        return total, len(places)

    def metrics(self, records: Records) -> dict[str, float]:
        """Share of hidden tokens guessed right, mean loss and perplexity of them; pseudo-perplexity if asked for."""
        targets = max(float(records["targets"].sum()), 1.0)
        loss = float(records["nats"].sum()) / targets
        found = {
            "accuracy": float(records["right"].sum()) / targets,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
        }
        if "alone" in records:
            mean = float(records["alone"].sum()) / max(float(records["tokens"].sum()), 1.0)
            found["pseudo_perplexity"] = math.exp(min(mean, 700))
        return found

    def samples(self, model: Any, settings: GenerateSettings) -> list[dict[str, Any]]:
        rows = []
        for text in self.facts.get("texts", []):
            words = text.split()
            hidden = " ".join([*words[:5], self.tokenizer.mask_token, *words[6:]])
            [answer] = self.predict(model, [{"text": hidden}], settings, 0)
            guesses = ", ".join(f"{fill['token']} {fill['score']:.0%}" for fill in answer["fills"][0])
            rows.append([hidden, words[5], guesses])
        return [{"kind": "table", "title": "Hidden words", "columns": ["text", "word", "guesses"], "rows": rows}]

    def _shown(self, token: int) -> str:
        """Return a token as text, without the blank before it unless it is nothing else."""
        text = self.tokenizer.decode([token])
        return text.strip() or repr(text)

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        model.eval()
        answers, limit = [], longest_sequence(model.config)
        for given in asked:
            text = given["text"]
            for mask in _MASKS:
                text = text.replace(mask, self.tokenizer.mask_token)
            inputs = self.tokenizer(text, return_tensors="pt").to(model.device)
            places = (inputs["input_ids"][0] == self.tokenizer.mask_token_id).nonzero()[:, 0]
            if not len(places):
                raise UserError(
                    f"{given['text'][:60]!r}: nothing is hidden; write {self.tokenizer.mask_token} for a word."
                )
            size = inputs["input_ids"].shape[1]
            if limit is not None and size > limit:
                raise UserError(
                    f"{given['text'][:60]!r}: has {size:,} tokens, and the model {limit:,} positions. Give a shorter text."
                )
            with torch.inference_mode():
                logits = model(**inputs).logits[0, places].float()
                scores = logits.index_fill(1, torch.from_numpy(self._special).to(logits.device), -math.inf)
            best = scores[:, : len(self.tokenizer)].softmax(-1).topk(_BEST)
            fills = [
                [
                    {"token": self._shown(token), "score": round(score, 6)}
                    for score, token in zip(row, tokens, strict=True)
                ]
                for row, tokens in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            filled = inputs["input_ids"][0].clone()
            filled[places] = best.indices[:, 0]
            answers.append(
                {
                    "text": given["text"],
                    "filled": self.tokenizer.decode(filled, skip_special_tokens=True),
                    "fills": fills,
                }
            )
        return answers
