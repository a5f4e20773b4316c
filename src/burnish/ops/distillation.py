"""Losses against what a teacher thinks likely: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_losses(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far each row's prediction lies from the teacher's: [n].

    The divergence of both softened predictions, times the squared temperature, so that its gradient keeps the size of that
    of labels.

    Args:
        logits: [n, classes].
        teacher: the teacher's logits, or logarithms of its probabilities [n, classes].

    Source: Hinton et al. 2015, section 2.

    >>> logits, teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    >>> [round(loss, 4) for loss in soft_losses(logits, teacher, 2.0).tolist()]
    [0.0, 1.3113]
    """
    wanted, found = (values.div(temperature).log_softmax(-1) for values in (teacher, logits))
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1)


def top_of(logits: Tensor, count: int, temperature: float) -> Tensor:
    """Return the likeliest classes of softened logits and what is left: float32 [n, 2 * count + 1].

    First the logarithms of their probabilities, then that of all others together, then their numbers.

    Args:
        count: how many; at most 2^24 classes can be numbered.
    """
    soft = logits.float().div(temperature).log_softmax(-1)
    best = soft.topk(min(count, soft.shape[1]), dim=1)
    rest = soft.scatter(1, best.indices, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([best.values, rest, best.indices.float()], 1)


def top_losses(logits: Tensor, top: Tensor, temperature: float) -> Tensor:
    """Return how far each row's prediction lies from the teacher's likeliest classes: [n], as `soft_losses` does.

    All other classes count as one. So the loss is never above that of all classes, and equals it where none is left out.

    Args:
        logits: [n, classes].
        top: what `top_of` returned for the teacher's.

    >>> logits, teacher = torch.randn(2, 9), torch.randn(2, 9)
    >>> torch.allclose(top_losses(logits, top_of(teacher, 9, 2.0), 2.0), soft_losses(logits, teacher, 2.0), atol=1e-5)
    True
    """
    count = top.shape[1] // 2
    wanted, numbers = top[:, : count + 1], top[:, count + 1 :].long()
    soft = logits.div(temperature).log_softmax(-1)
    rest = soft.scatter(1, numbers, -torch.inf).logsumexp(1, keepdim=True)
    found = torch.cat([soft.gather(1, numbers), rest], 1)
    nothing = wanted == -torch.inf  # no class was left out: 0 log 0 is 0
    apart = (wanted - found).masked_fill(nothing, 0.0)
    return temperature**2 * (wanted.exp() * apart).sum(1)
