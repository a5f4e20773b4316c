"""Reward modeling: rate answers, learned from pairs of which one is better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from burnish.config import GenerateSettings, TaskSettings
from burnish.data.chat import conversation, set_template, written
from burnish.data.pairs import answer_to, halves, pair_of
from burnish.data.rows import GIVEN
from burnish.data.tokenizer import encode_texts, fill_up, pad_id
from burnish.errors import UserError
from burnish.task import Batch, Example, Row, label_options
from burnish.tasks.pairs import PairTask

if TYPE_CHECKING:
    import torch


class RewardModelingSettings(TaskSettings):
    """Rate an answer by a number."""

    center: float = Field(0.0, ge=0)
    """Weight of a term that keeps the rewards of all answers around zero: the square of the sum of a pair's two."""
    template: str | None = None
    """How a conversation is written out: `chatml`, or a file with a Jinja template. Default: the tokenizer's own."""


class RewardModeling(PairTask):
    """Learn a number for each answer such that the better one of a pair has the larger.

    The probability that an answer is the better one is the logistic function of the difference of the two rewards.

    Source: Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1; the centre: Eisenstein et al. 2023.
    """

    name = "reward-modeling"
    version = 2
    Settings = RewardModelingSettings
    auto_class = "AutoModelForSequenceClassification"
    asks = (GIVEN, "chosen")

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        if self.settings.template:
            set_template(tokenizer, self.settings.template)

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Nothing need be known; that the first row is a pair is found out early."""
        pair_of(next(iter(rows)))
        return {}

    def model_options(self) -> dict[str, Any]:
        return {
            **label_options(["reward"]),
            "pad_token_id": pad_id(self.tokenizer),
        }

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        for row in rows:
            pair = pair_of(row)
            prompt = row.values.get(GIVEN)
            whole = pair.is_chat or prompt is None
            answers = [pair.prompt + answer if whole else answer for answer in (pair.chosen, pair.rejected)]
            both = [self._inputs(None if whole else prompt, answer, sequence, row.where) for answer in answers]
            if all(np.array_equal(both[0][name], both[1][name]) for name in both[0]):
                raise UserError(
                    f"{row.where}: the two answers do not differ within {sequence} tokens. Give a larger --train.sequence, "
                    "or remove the row."
                )
            sizes = [len(one["input_ids"]) for one in both]
            example = {name: np.concatenate([one[name] for one in both]) for name in both[0]}
            yield {**example, "sizes": np.array(sizes), "cut": np.array([max(sizes) >= sequence])}, row.where

    def _inputs(self, prompt: str | None, answer: Any, sequence: int, where: str) -> Example:
        """Return what the model reads of an answer: text after its prompt as the tokenizer joins the two, or messages."""
        if isinstance(answer, str):
            texts, pairs = ([answer], None) if prompt is None else ([prompt], [answer])
            return encode_texts(self.tokenizer, texts, sequence, pairs)[0]
        text = written(self.tokenizer, conversation(answer, where), answer_follows=False, where=where)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": np.array(ids[:sequence])}

    def collate(self, examples: Sequence[Example]) -> Batch:
        names = [name for name in ("input_ids", "token_type_ids") if name in examples[0]]
        rows = [{name: halves(one, name)[half] for name in names} for one in examples for half in (0, 1)]
        return self._batch(rows, float(len(examples)))

    def _batch(self, rows: Sequence[Example], count: float) -> Batch:
        import torch

        filled, _ = fill_up(self.tokenizer, rows)
        inputs = {name: torch.from_numpy(values) for name, values in filled.items()}
        return Batch(inputs, {}, {"loss": count}, [len(row["input_ids"]) for row in rows])

    def rewards(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn.functional import logsigmoid

        rewards = model(**batch.inputs).logits.float().view(-1, 2)
        losses = -logsigmoid(rewards[:, 0] - rewards[:, 1])
        return rewards, losses + self.settings.center * rewards.sum(1).square()

    def loss(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.rewards(model, batch)[1].sum()}

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        import torch

        from burnish.models.load import longest_sequence

        limit = min(longest_sequence(model.config) or 512, self.tokenizer.model_max_length)
        found = []
        for number, given in enumerate(asked, 1):  # each by itself, so a score does not depend on what else was asked
            where = f"Input {number}"
            prompt, answer = answer_to(given.get(GIVEN), given["chosen"], where)
            batch = self._batch([self._inputs(prompt, answer, limit, where)], 0.0)
            with torch.inference_mode():
                score = float(model(**batch.to(str(model.device)).inputs).logits)
            shown = {"prompt" if name == GIVEN else name: value for name, value in given.items()}
            found.append({**shown, "score": round(score, 6)})
        return found
