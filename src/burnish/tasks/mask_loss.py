"""The loss of models that give a set of masks, MaskFormer and Mask2Former: each term a sum, over all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.errors import UserError

if TYPE_CHECKING:
    import torch

#: Models whose loss this is: transformers' names.
KINDS = frozenset({"mask2former", "maskformer"})
#: Of the focal loss (Lin et al. 2017, section 3.3): how much pixels inside count, and how little those that are right.
_ALPHA, _GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class Target:
    """What is to be found in an image.

    Args:
        numbers: the class of each segment: int64 [segments].
        masks: of each, 0 or 1: [segments, height, width].
        known: the pixels that count: [height, width].
    """

    numbers: torch.Tensor
    masks: torch.Tensor
    known: torch.Tensor


@dataclass(frozen=True)
class MaskLoss:
    """The terms of classes and of masks, at each layer that predicts; segments are matched with queries by the same terms.

    transformers divides by the number of segments of the batch at hand, and Mask2Former looks at random points: both would
    make the gradient depend on how a step is cut. Here all pixels of the model's maps count, a target's as the share of them
    that it covers.

    Args:
        class_factor, mask_factor, dice_factor: what each term is multiplied by.
        nothing: how much a query counts that should find nothing.
        focal: whether pixels that are right count little, as in MaskFormer.
        queries: how many segments a model can find.

    Sources: Cheng et al. 2021 (MaskFormer), equation 2; Cheng et al. 2022 (Mask2Former), section 3.3.
    """

    class_factor: float
    mask_factor: float
    dice_factor: float
    nothing: float
    focal: bool
    queries: int

    @staticmethod
    def of(model: Any) -> MaskLoss:
        """Return the loss of a model.

        Raises:
            UserError: it is none of `KINDS`.
        """
        config = model.config
        if config.model_type not in KINDS:
            raise UserError(
                f"model: a {config.model_type} is not trained to tell objects apart here. Take a Mask2Former or MaskFormer."
            )
        focal = config.model_type == "maskformer"
        classes = config.cross_entropy_weight if focal else config.class_weight
        queries = config.decoder_config.num_queries if focal else config.num_queries
        return MaskLoss(classes, config.mask_weight, config.dice_weight, config.no_object_weight, focal, queries)

    def weights(self, counts: Sequence[int]) -> dict[str, float]:
        """Return how much each term counts for images with these numbers of segments."""
        found = sum(min(count, self.queries) for count in counts)
        nothing = len(counts) * self.queries - found
        return {"classes": found + self.nothing * nothing, "masks": float(sum(counts))}

    def __call__(self, output: Any, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
        """Return the sum of each term over images and layers.

        Args:
            output: of the model, with what its layers predict.
        """
        sums: dict[str, torch.Tensor] = {}
        for layer in (output, *(output.auxiliary_logits or ())):
            classes, maps = layer["class_queries_logits"].float(), layer["masks_queries_logits"].float()
            for own_classes, own_maps, target in zip(classes, maps, targets, strict=True):
                for name, value in self._terms(own_classes, own_maps, target).items():
                    sums[name] = sums.get(name, 0.0) + value
        return sums

    def _terms(self, classes: torch.Tensor, maps: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
        """Return the terms of an image.

        Args:
            classes: logits, that of nothing last: [queries, classes + 1].
            maps: logits of being inside: [queries, height, width].
        """
        import torch
        from torch.nn import functional

        known = shrunk(target.known[None], *maps.shape[1:])
        inside = shrunk(target.masks * target.known, *maps.shape[1:]) / known.clamp(min=1e-6)
        flat = maps.flatten(1), inside.flatten(1), known.flatten()
        with torch.no_grad():
            cost = self._misfit(*flat) - self.class_factor * classes.softmax(-1)[:, target.numbers]
            query, segment = _matched(cost)
        wanted = torch.full((len(classes),), classes.shape[1] - 1, device=classes.device)
        wanted[query] = target.numbers[segment]
        weight = torch.ones(classes.shape[1], device=classes.device)
        weight[-1] = self.nothing
        missed = functional.cross_entropy(classes, wanted, weight, reduction="sum")
        misfit = self._misfit(flat[0][query], flat[1][segment], flat[2]).diagonal()
        return {"classes": self.class_factor * missed, "masks": misfit.sum()}

    def _misfit(self, maps: torch.Tensor, inside: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return how badly each map fits each segment: [maps, segments].

        Args:
            maps: logits [maps, pixels].
            inside: share of each pixel that a segment covers: [segments, pixels].
            known: share of each pixel that counts: [pixels].
        """
        from torch.nn import functional

        total, chance = known.sum().clamp(min=1e-6), maps.sigmoid()
        here, beside = functional.softplus(-maps), functional.softplus(maps)  # what a pixel costs inside, and outside
        if self.focal:
            here = _ALPHA * (1 - chance) ** _GAMMA * here
            beside = (1 - _ALPHA) * chance**_GAMMA * beside
        pixels = ((here - beside) * known @ inside.T + (beside * known).sum(1, keepdim=True)) / total
        shared, sizes = chance * known @ inside.T, (chance * known).sum(1)[:, None] + (inside * known).sum(1)
        dice = 1 - (2 * shared + 1) / (sizes + 1)
        return self.mask_factor * pixels + self.dice_factor * dice


def shrunk(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return masks [masks, height, width] in a smaller size, each pixel the mean of those it covers."""
    from torch.nn import functional

    return functional.adaptive_avg_pool2d(masks.float()[:, None], (height, width))[:, 0]


def _matched(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which query belongs to which segment, so that the sum of their costs [queries, segments] is least."""
    import torch
    from scipy.optimize import linear_sum_assignment

    most = torch.finfo(cost.dtype).max
    pairs = linear_sum_assignment(cost.nan_to_num(most, most, -most).cpu())
    query, segment = (torch.as_tensor(part, device=cost.device) for part in pairs)
    return query, segment
