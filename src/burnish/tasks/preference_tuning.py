"""Preference tuning: of two answers to a prompt, make the better one likelier (DPO and its kin)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from burnish.config import GenerateSettings, TaskSettings, refuse_unused
from burnish.data.chat import answers
from burnish.data.pairs import Pair, halves, pair_of
from burnish.data.tokenizer import filled_up, pad_id
from burnish.errors import UserError
from burnish.task import Batch, Example, FrozenModel, Row
from burnish.tasks.causal_lm import TextGeneration
from burnish.tasks.pairs import PairTask

if TYPE_CHECKING:
    import torch

#: Settings that not every loss has, and the losses that have them.
_LOSSES_WITH = {
    "label_smoothing": ("sigmoid", "simpo"),
    "gamma": ("simpo",),
    "reference": ("sigmoid", "hinge", "ipo"),
}

Tokens = tuple[list[int], list[bool]]
"""An answer with its prompt as token ids, and which of them are the answer's."""


class PreferenceTuningSettings(TaskSettings):
    """Prefer one answer to another."""

    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "orpo"] = "sigmoid"
    """How a pair is judged: sigmoid is DPO; hinge (SLiC) and ipo compare with a reference too; simpo and orpo need none."""
    beta: float = Field(0.1, gt=0)
    """How closely the model stays with the reference: the smaller, the further it may go. simpo: scale of the rewards.
    orpo: weight of the comparison beside learning the better answer (the paper's lambda)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are assumed to be the wrong way round (sigmoid, simpo)."""
    gamma: float = Field(0.5, ge=0)
    """simpo: by how much the better answer's reward should lie above the other's."""
    reference: str | None = None
    """The model that rewards are measured from: a Hub id, a folder or a run. Default: the model as the run begins."""
    template: str | None = None
    """How a conversation is written out: `chatml`, or a file with a Jinja template. Default: the tokenizer's own."""
    prompts: tuple[str, ...] = ()
    """Three prompts the report answers. Default: taken from the training rows."""


class PreferenceTuning(PairTask, TextGeneration):
    """Learn from pairs of answers which one is better, without a reward model.

    The reward of an answer is how much likelier the model makes it than a frozen reference does; the loss of a pair is a
    function of the difference of its two rewards. A pair is two rows of the same example, each the prompt and an answer.

    Source: Rafailov et al. 2023 (DPO), equation 7; Zhao et al. 2023 (SLiC); Azar et al. 2023 (IPO), equation 17, with
    log-probabilities per token as TRL has it; Meng et al. 2024 (SimPO), equation 6; Hong et al. 2024 (ORPO), equations 3
    to 7, each answer's likelihood a mean over its own tokens; Mitchell 2023 (label smoothing).
    """

    name = "preference-tuning"
    version = 2
    Settings = PreferenceTuningSettings
    asks = ("given",)
    takes_prompt = False

    def __init__(self, settings: TaskSettings, tokenizer: Any, facts: Mapping[str, Any]):
        super().__init__(settings, tokenizer, facts)
        loss = self.settings.loss
        for name, losses in _LOSSES_WITH.items():
            if loss not in losses:
                why = f"{loss} has none. Give --task.loss {' or '.join(losses)}, or leave it out."
                refuse_unused("task", self.settings, (name,), why)

    @property
    def _compares(self) -> bool:
        return self.settings.loss in _LOSSES_WITH["reference"]

    @classmethod
    def learn(cls, rows: Iterable[Row], settings: Any) -> dict[str, Any]:
        """Keep three prompts for the report, and whether answers are messages."""
        pairs = [pair_of(row) for row in islice(rows, 3)]
        prompts = [pair.prompt[0]["content"] if pair.is_chat else pair.prompt for pair in pairs]
        return {"prompts": prompts, "chats": pairs[0].is_chat}

    def encode(self, rows: Iterable[Row], sequence: int, *, training: bool) -> Iterator[tuple[Example, str]]:
        for row in rows:
            pair = pair_of(row)
            if pair.is_chat != self.facts.get("chats", pair.is_chat):
                raise UserError(f"{pair.where}: some answers are text, others are messages; give all the same way.")
            tokens = self._chat_tokens if pair.is_chat else self._text_tokens
            ids, scored = zip(*(tokens(pair, answer) for answer in (pair.chosen, pair.rejected)), strict=True)
            most = sequence + 1  # the last token is only predicted
            if not all(any(one[1:most]) for one in scored):
                raise UserError(
                    f"{pair.where}: the prompt leaves no room for an answer in a sequence of {sequence} tokens. Give a "
                    "larger --train.sequence, or shorten the prompt."
                )
            example = {
                "input_ids": np.concatenate([one[:most] for one in ids]),
                "sizes": np.array([min(len(one), most) for one in ids]),
                "scored": np.concatenate([one[:most] for one in scored]).astype(np.uint8),
                "cut": np.array([max(map(len, ids)) > most]),
            }
            yield example, pair.where

    def _text_tokens(self, pair: Pair, answer: str) -> Tokens:
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        before, after = self._ids([pair.prompt, answer])
        before = before or end or [0]
        return [*before, *after, *end], [False] * len(before) + [True] * (len(after) + len(end))

    def _chat_tokens(self, pair: Pair, answer: Any) -> Tokens:
        text, stretches = answers(self.tokenizer, [*pair.prompt, *answer], pair.where)[-1]
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        first, end = stretches[-1]
        return found["input_ids"], [first <= start < end for start, _ in found["offset_mapping"]]

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        ids, scored = ([part for one in examples for part in halves(one, name)] for name in ("input_ids", "scored"))
        inputs, _ = filled_up([one[:-1] for one in ids], pad_id(self.tokenizer))
        # No attention mask: padding stands on the right, where causal attention never looks, and has no target.
        rows, columns = filled_up([one[1:] for one in scored], 0)[0].nonzero()
        targets = {
            "labels": torch.from_numpy(filled_up([one[1:] for one in ids], 0)[0][rows, columns]),
            "places": torch.from_numpy(rows * inputs.shape[1] + columns),
            "tokens": torch.from_numpy(np.bincount(rows).reshape(-1, 2)),
        }
        if "remembered" in examples[0]:
            targets["remembered"] = torch.from_numpy(np.concatenate([one["remembered"] for one in examples]))
        weights = {"loss": float(len(examples))} | ({"router": float(len(ids))} if self._routes else {})
        return Batch({"input_ids": torch.from_numpy(inputs)}, targets, weights, [len(one) - 1 for one in ids])

    def _log_probabilities(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each pair's two answers: float32 [pairs, 2]."""
        from burnish.models.logits import losses

        places, ids = batch.targets["places"], batch.inputs["input_ids"]
        nats = losses(model, batch.inputs, batch.targets["labels"], places)
        return nats.new_zeros(len(ids)).index_add(0, places // ids.shape[1], -nats).view(-1, 2)

    def frozen_model(self) -> FrozenModel | None:
        return FrozenModel(self.settings.reference, "task.reference") if self._compares else None

    def remember(self, model: Any, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the log-probabilities of both answers of each pair: [1, 2]."""
        return self._log_probabilities(model, batch).split(1)

    def rewards(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = self._log_probabilities(model, batch)
        if self._compares:
            rewards = rewards - batch.targets["remembered"]
        if self.settings.loss in ("ipo", "simpo", "orpo"):
            rewards = rewards / batch.targets["tokens"]
        return self.settings.beta * rewards, pair_losses(rewards, self.settings)

    def _own_losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.rewards(model, batch)[1].sum()}

    def predict(
        self, model: Any, asked: Sequence[Mapping[str, Any]], settings: GenerateSettings, seed: int
    ) -> list[dict[str, Any]]:
        prompts = [given.get("given", given.get("text", "")) for given in asked]
        found = self._continued(model, prompts, settings, seed)
        return [{"prompt": prompt, "generated": answer} for prompt, answer in zip(prompts, found, strict=True)]


def pair_losses(rewards: torch.Tensor, settings: PreferenceTuningSettings) -> torch.Tensor:
    """Return the loss of each pair [pairs].

    Args:
        rewards: of the two answers, before they are scaled by `beta` [pairs, 2].
    """
    from torch.nn.functional import logsigmoid, relu

    if settings.loss == "orpo":
        odds = log_odds(rewards)
        return -rewards[:, 0] - settings.beta * logsigmoid(odds[:, 0] - odds[:, 1])
    difference = rewards[:, 0] - rewards[:, 1]
    if settings.loss == "ipo":
        return (difference - 1 / (2 * settings.beta)).square()
    scaled = settings.beta * difference - (settings.gamma if settings.loss == "simpo" else 0.0)
    if settings.loss == "hinge":
        return relu(1 - scaled)
    return -(1 - settings.label_smoothing) * logsigmoid(scaled) - settings.label_smoothing * logsigmoid(-scaled)


def log_odds(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)); where p is 1 in float32, that of the next smaller number, so that the gradient is finite.

    >>> import torch
    >>> log_odds(torch.tensor([0.5, 0.9, 1.0]).log())
    tensor([ 0.0000,  2.1972, 15.9424])
    """
    import torch

    below_one = log_probabilities.clamp(max=-torch.finfo(torch.float32).eps)
    return log_probabilities - torch.log(-torch.expm1(below_one))
