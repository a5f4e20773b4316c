"""Answers sampled, rated by the model itself, and ranked, as LaMDA does. Source: Thoppilan et al. 2022, section 5.1.

The model was taught two kinds of texts: `CONTEXT RESPONSE ANSWER`, and `CONTEXT RESPONSE ANSWER ATTRIBUTE RATING`, the
rating a 0 or a 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from burnish.config import GenerateSettings
from burnish.data.new_tokens import opened
from burnish.errors import UserError
from burnish.generate.sample import sample
from burnish.task import Row

RESPONSE = "RESPONSE"
"""Stands between what was said and the answer to it."""
UNSAFE = "UNSAFE"
"""The attribute by which answers are dropped."""
WEIGHTS = {"SENSIBLE": 3.0, "SPECIFIC": 1.0, "INTERESTING": 1.0}
"""What an answer's other ratings count in its quality."""

_ATTRIBUTES = " or ".join([*WEIGHTS, UNSAFE])
#: Texts that are rated at once.
_AT_ONCE = 64


def answer_prompt(context: str) -> str:
    """Return what stands before an answer."""
    return f"{context} {RESPONSE}"


def rating_prompt(context: str, answer: str, attribute: str) -> str:
    """Return what stands before a rating.

    >>> rating_prompt("What's up?", "not much.", "SENSIBLE")
    "What's up? RESPONSE not much. SENSIBLE"
    """
    return f"{answer_prompt(context)} {answer} {attribute}"


def check_ratings(rows: Iterable[Row]) -> None:
    """Try that rows teach to answer and to rate by every attribute.

    Raises:
        UserError: a row does neither, a rating is not 0 or 1, or an attribute has no row.
    """
    missing = {RESPONSE, UNSAFE, *WEIGHTS}
    for row in rows:
        *before, last = str(row.values.get("prompt", "")).split(" ")
        if last != RESPONSE and not (last in (UNSAFE, *WEIGHTS) and RESPONSE in before):
            raise UserError(
                f"{row.where}: task.rates takes prompts that end with {RESPONSE}, or with {_ATTRIBUTES} after "
                f"{RESPONSE} and an answer; this one does not. Mend the row, name the column by --data.prompt, or leave "
                "task.rates out."
            )
        if last != RESPONSE and row.values["text"].strip() not in ("0", "1"):
            raise UserError(f"{row.where}: the rating {row.values['text'].strip()[:40]!r} is neither 0 nor 1.")
        missing.discard(last)
    if missing:
        raise UserError(
            f"task.rates: no training row ends its prompt with {', '.join(sorted(missing))}, so the model would not learn it."
        )


def ranked(model: Any, tokenizer: Any, context: str, settings: GenerateSettings, seed: int) -> list[dict[str, Any]]:
    """Return different answers to a context, those that are not safe enough last, else the best first.

    Args:
        context: what was said; it may end with the sentinel already, as the rows that teach to answer do.

    Returns:
        of each its `text`, its `ratings` (probabilities of a 1), its `quality` and whether it is `safe`.
    """
    context = context.removesuffix(f" {RESPONSE}")
    found = sample(model, tokenizer, answer_prompt(context), settings, seed, count=settings.candidates)
    texts = list(dict.fromkeys(filter(None, (text.strip() for text in found))))
    attributes = [*WEIGHTS, UNSAFE]
    prompts = [rating_prompt(context, text, attribute) for text in texts for attribute in attributes]
    chances = iter(rate(model, tokenizer, prompts))
    answers = []
    for text in texts:
        ratings = {attribute: next(chances) for attribute in attributes}
        answers.append({
            "text": text,
            "ratings": {attribute.lower(): chance for attribute, chance in ratings.items()},
            "quality": sum(weight * ratings[attribute] for attribute, weight in WEIGHTS.items()),
            "safe": 1 - ratings[UNSAFE] >= settings.safety,
        })  # fmt: skip
    return sorted(answers, key=lambda answer: (not answer["safe"], -answer["quality"]))


def rate(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[float]:
    """Return how probable a 1 is after each prompt, given that a 0 or a 1 follows.

    Rows are computed side by side, padded on the right, where a decoder never looks.
    """
    import torch

    from burnish.models.logits import logits_at

    chances: list[float] = []
    for start in range(0, len(prompts), _AT_ONCE):
        ways = [
            tokenizer(
                [opened(tokenizer, f"{prompt} {rating}") for prompt in prompts[start : start + _AT_ONCE]],
                add_special_tokens=False,
            )
            for rating in (1, 0)
        ]
        pairs = list(zip(*(way["input_ids"] for way in ways), strict=True))
        shared = [
            sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))) for pair in pairs
        ]
        ids = torch.zeros(len(pairs), max(shared), dtype=torch.long)
        for row, ((one, _), length) in enumerate(zip(pairs, shared, strict=True)):
            ids[row, :length] = torch.tensor(one[:length])
        places = torch.arange(len(pairs)) * ids.shape[1] + torch.tensor(shared) - 1
        ends = torch.tensor([[way[length] for way in pair] for pair, length in zip(pairs, shared, strict=True)])
        with torch.inference_mode():
            logits = logits_at(model, {"input_ids": ids.to(model.device)}, places.to(model.device)).cpu()
        chances += logits.gather(1, ends).softmax(1)[:, 0].tolist()
    return chances
