"""The loss of detectors that give a set of boxes: transformers' own matchers and terms, as sums instead of means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.errors import UserError

if TYPE_CHECKING:
    import torch

Layer = dict[str, "torch.Tensor"]
"""What one layer of a detector predicts, by transformers' names; the images of a batch are the first dimension."""

_SOFTMAX = frozenset({"ForObjectDetection"})
_FOCAL = frozenset({f"{name}ForObjectDetection" for name in ("DeformableDetr", "ConditionalDetr", "DabDetr")})
_VARIFOCAL = frozenset({"RTDetrForObjectDetection", "RTDetrV2ForObjectDetection"})
_FINE = frozenset({"DFineForObjectDetection"})
_GROUPED = frozenset({"LwDetrForObjectDetection", "RfDetrForObjectDetection"})
KINDS = _SOFTMAX | _FOCAL | _VARIFOCAL | _FINE | _GROUPED


@dataclass
class SetLoss:
    """Stands where a model has its `loss_function`, and gives each term's sum over the images of the batch.

    transformers divides by the number of boxes of the batch at hand, and DETR's classification by the weights of its
    queries, so that the mean over micro-batches would depend on how a step is cut.

    Args:
        kind: transformers' name of the model's loss.
        criterion: transformers' module with matcher and terms.
        factors: what each of its terms is multiplied by.
    """

    kind: str
    criterion: Any
    factors: Mapping[str, float]

    @staticmethod
    def of(model: Any) -> SetLoss:
        """Return the loss of a model.

        Raises:
            UserError: it is none that is known to be a sum over images.
        """
        from transformers.loss.loss_d_fine import DFineLoss
        from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
        from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
        from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
        from transformers.loss.loss_rt_detr import RTDetrLoss

        kind, config = getattr(model, "loss_type", None), model.config
        if kind not in KINDS:
            raise UserError(
                f"model: a {config.model_type} is not trained here, for its loss is not known to be a sum over images. Take a "
                "DETR, Conditional DETR, Deformable DETR, RT-DETR, D-FINE, LW-DETR, RF-DETR or YOLOS."
            )
        if kind in _VARIFOCAL | _FINE:
            criterion = (DFineLoss if kind in _FINE else RTDetrLoss)(config)
            return SetLoss(kind, criterion, criterion.weight_dict)
        costs = config.class_cost, config.bbox_cost, config.giou_cost
        terms = ["labels", "boxes"]
        if kind in _SOFTMAX:
            criterion = ImageLoss(HungarianMatcher(*costs), config.num_labels, config.eos_coefficient, terms)
        elif kind in _GROUPED:
            matcher = LwDetrHungarianMatcher(*costs)
            criterion = LwDetrImageLoss(matcher, config.num_labels, config.focal_alpha, terms, config.group_detr)
        else:
            matcher = DeformableDetrHungarianMatcher(*costs)
            criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, terms)
        factors = {
            "loss_ce": config.class_loss_coefficient if kind in _GROUPED else 1.0,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }
        return SetLoss(kind, criterion, factors)

    @property
    def has_nothing(self) -> bool:
        """Whether the last of the model's classes stands for no object."""
        return self.kind in _SOFTMAX

    def weights(self, counts: Sequence[int], queries: int) -> dict[str, float]:
        """Return how much each term counts for images with these numbers of boxes."""
        boxes, found = {"boxes": float(sum(counts))}, sum(min(count, queries) for count in counts)
        if self.has_nothing:  # a query counts by the class that it should have
            return {"classes": found + self.criterion.eos_coef * (len(counts) * queries - found), **boxes}
        distilled = {"distillation": float(len(counts))} if self.kind in _FINE else {}
        return {"classes": float(sum(counts)), **boxes, **distilled}

    def __call__(
        self,
        logits: torch.Tensor,
        labels: list[dict[str, torch.Tensor]],
        device: Any,
        pred_boxes: torch.Tensor,
        config: Any,
        outputs_class: torch.Tensor | None = None,
        outputs_coord: torch.Tensor | None = None,
        *encoder: torch.Tensor,
        **more: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], None]:
        """Return the sum of all terms and each of them; called by the model with what its layers predict."""
        self.criterion.to(device)
        layers = self._layers(logits, pred_boxes, outputs_class, outputs_coord, encoder, more)
        groups = logits.shape[1] // config.num_queries if self.kind in _GROUPED else 1  # each finds all boxes
        sums: dict[str, torch.Tensor] = {}
        for layer in layers:
            for term, value in self._terms(layer, labels, groups).items():
                group = {"loss_bbox": "boxes", "loss_giou": "boxes", "loss_fgl": "boxes", "loss_ddf": "distillation"}
                name = group.get(term, "classes")
                sums[name] = sums.get(name, 0.0) + self.factors[term] / groups * value
        return sum(sums.values()), sums, None  # type: ignore  (tensors)

    def _layers(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        classes_of: torch.Tensor | None,
        boxes_of: torch.Tensor | None,
        encoder: Sequence[torch.Tensor],
        more: Mapping[str, Any],
    ) -> list[Layer]:
        """Return what is compared with the targets: the last layer's predictions, and those of the layers before it."""
        rows_first = self.kind in _VARIFOCAL | _FINE
        pairs = [(logits, boxes)]
        if classes_of is not None and boxes_of is not None:
            one, other = (value.transpose(0, 1) if rows_first else value for value in (classes_of, boxes_of))
            pairs = list(zip(one[:-1], other[:-1], strict=True)) + pairs
        if rows_first:
            encoder = more["enc_topk_logits"], more["enc_topk_bboxes"]
        if encoder:
            pairs.append((encoder[0], encoder[1]))
        layers = [{"logits": one.float(), "pred_boxes": other.float()} for one, other in pairs]
        if self.kind in _FINE:
            points, corners = more["initial_reference_points"], more["predicted_corners"]
            for index, layer in enumerate(layers):
                layer["pred_boxes"] = layer["pred_boxes"].clamp(0, 1)
                if index < corners.shape[1] - 1:  # the last layer teaches those before it
                    layer["pred_corners"], layer["ref_points"] = corners[:, index].float(), points[:, index].float()
                    layer["teacher_corners"], layer["teacher_logits"] = corners[:, -1].float(), logits.float()
        return layers

    def _terms(self, layer: Layer, labels: list[dict[str, torch.Tensor]], groups: int) -> dict[str, torch.Tensor]:
        """Return the sums of a layer's terms. transformers divides by the number of boxes it is told: by 1."""
        chosen = self._matched(layer, labels, groups)
        found: dict[str, torch.Tensor] = {}
        for term in self.criterion.losses:
            if term != "local":
                found |= self.criterion.get_loss(term, layer, labels, chosen, 1.0)
            elif "pred_corners" in layer:  # a mean over an image's queries, so each is asked by itself
                for row in range(len(labels)):
                    alone = {name: value[row : row + 1].clone() for name, value in layer.items()}
                    own = self.criterion.get_loss(term, alone, labels[row : row + 1], chosen[row : row + 1], 1.0)
                    found |= {name: found.get(name, 0.0) + value for name, value in own.items()}
        if self.has_nothing:
            count = self.weights([len(one) for one, _ in chosen], layer["logits"].shape[1])["classes"]
            found["loss_ce"] = found["loss_ce"] * count
        return found

    def _matched(self, layer: Layer, labels: list[dict[str, torch.Tensor]], groups: int) -> list[tuple[Any, Any]]:
        """Return which queries of each image are matched with which of its boxes."""
        import torch

        if any(len(one["class_labels"]) for one in labels):
            return self.criterion.matcher(layer, labels, *([groups] if self.kind in _GROUPED else []))
        nothing = torch.zeros(0, dtype=torch.int64)  # transformers' matchers fail where no image has a box
        return [(nothing, nothing) for _ in labels]
