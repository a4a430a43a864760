"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection")."""

from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import full_precision, pairwise_iou
from d2proj.modeling.losses import BoxLoss
from d2proj.modeling.matching import Matcher
from d2proj.modeling.meta_arch.base import register
from d2proj.modeling.meta_arch.dense import (
    Candidates,
    DenseDetector,
    Predictions,
    best_candidates,
)
from d2proj.modeling.priors import AnchorGenerator


@register
class RetinaNet(DenseDetector):
    """Anchors on a pyramid, a class and a box for each, trained with the focal loss.

    State-dict names are those of Detectron2's ``RetinaNet``, with one addition: the buffer
    ``loss_normalizer``, the moving average of the number of positive anchors, which a resumed
    training needs. Checkpoints without it load: it then keeps its value.

    Args:
        anchor_generator, anchor_matcher, box2box_transform: see their classes.
        cls_loss: of (anchors, K) logits and the anchors' classes, summed.
        box_loss: of the deltas of positive anchors, summed.
        loss_normalizer: initial value of the moving average that both losses are divided by.
        loss_normalizer_momentum: weight of the average's past; 0 divides by the batch's own number.
        **dense_detector: see :class:`DenseDetector`.
    """

    loss_normalizer: Tensor

    def __init__(
        self,
        *,
        anchor_generator: AnchorGenerator,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        cls_loss: nn.Module,
        box_loss: BoxLoss,
        loss_normalizer: float = 100.0,
        loss_normalizer_momentum: float = 0.9,
        **dense_detector: Any,
    ) -> None:
        super().__init__(**dense_detector)
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.loss_normalizer_momentum = loss_normalizer_momentum
        self.register_buffer("loss_normalizer", torch.tensor(float(loss_normalizer)))

    def prediction_losses(
        self,
        maps: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``."""
        anchors = torch.cat(self.anchor_generator(maps))
        logits, deltas = (torch.cat(levels, dim=1) for levels in predictions)
        classes, positives, boxes = self._assign(anchors, gt_instances)
        positive = torch.cat([row + i * len(anchors) for i, row in enumerate(positives)])
        normalizer = self._normalizer(len(positive))
        loss_box = self.box_loss(
            full_precision(deltas.flatten(0, 1)[positive]),
            anchors[torch.cat(positives)],
            torch.cat(boxes),
            self.box2box_transform,
        )
        loss_cls = self.cls_loss(logits.flatten(0, 1), torch.cat(classes))
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box / normalizer}

    @torch.no_grad()
    def _assign(
        self, anchors: Tensor, gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Assign ground truth to anchors.

        Returns:
            Of each image the classes of all anchors (K: negative, -1: ignored), the indices of the
            positive ones, and the ground truth boxes of those.
        """
        classes, positives, boxes = [], [], []
        for truth in gt_instances:
            gt_boxes = truth.gt_boxes.tensor
            matches, labels = self.anchor_matcher(pairwise_iou(gt_boxes, anchors))
            positive = torch.nonzero(labels == 1).squeeze(1)
            of_image = torch.full_like(matches, self.num_classes).masked_fill_(labels == -1, -1)
            of_image[positive] = truth.gt_classes[matches[positive]]
            classes.append(of_image)
            positives.append(positive)
            boxes.append(gt_boxes[matches[positive]])
        return classes, positives, boxes

    @torch.no_grad()
    def _normalizer(self, num_positive: int) -> Tensor:
        """Update the moving average of the number of positive anchors; returns a copy."""
        self.loss_normalizer.lerp_(
            self.loss_normalizer.new_tensor(float(max(num_positive, 1))),
            1.0 - self.loss_normalizer_momentum,
        )
        return self.loss_normalizer.clone()

    def decode(
        self, maps: list[Tensor], predictions: Predictions, input_size: tuple[int, int]
    ) -> Candidates:
        """The best candidates of each level of one image, their boxes decoded."""
        boxes, scores, classes = [], [], []
        for anchors, logits, deltas in zip(self.anchor_generator(maps), *predictions, strict=True):
            best, rows, kinds = best_candidates(
                logits,
                score_thresh=self.postprocess.score_thresh,
                topk=self.postprocess.topk_candidates,
            )
            boxes.append(self.box2box_transform.apply_deltas(deltas[rows], anchors[rows]))
            scores.append(best)
            classes.append(kinds)
        return torch.cat(boxes), torch.cat(scores), torch.cat(classes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "loss_normalizer", self.loss_normalizer.detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *args)
