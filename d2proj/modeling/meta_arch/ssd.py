"""SSD (Liu et al. 2016, "SSD: single shot multibox detector")."""

from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import full_precision, pairwise_iou
from d2proj.modeling.losses import BoxLoss
from d2proj.modeling.matching import BipartiteMatcher, Matcher
from d2proj.modeling.meta_arch.base import register
from d2proj.modeling.meta_arch.dense import Candidates, DenseDetector, Predictions
from d2proj.modeling.priors import AnchorGenerator


@register
class SSD(DenseDetector):
    """Default boxes on several maps, each with scores of a softmax and a box.

    Args:
        anchor_generator, anchor_matcher, box2box_transform: see their classes.
        cls_loss: of (N, P, K + 1) logits and the (N, P) classes of the default boxes, K being the
            background; summed.
        box_loss: of the deltas of matched default boxes, summed.
        **dense_detector: see :class:`DenseDetector`. ``topk_candidates`` of its postprocess are the
            best of each class in an image.
    """

    def __init__(
        self,
        *,
        anchor_generator: AnchorGenerator,
        anchor_matcher: BipartiteMatcher | Matcher,
        box2box_transform: Box2BoxTransform,
        cls_loss: nn.Module,
        box_loss: BoxLoss,
        **dense_detector: Any,
    ) -> None:
        super().__init__(**dense_detector)
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.cls_loss = cls_loss
        self.box_loss = box_loss

    def prediction_losses(
        self,
        maps: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``, both divided by the number of matched boxes."""
        anchors = torch.cat(self.anchor_generator(maps))
        logits, deltas = (torch.cat(levels, dim=1) for levels in predictions)
        matches, classes = self._assign(anchors, gt_instances)
        image, prior = torch.nonzero(classes != self.num_classes, as_tuple=True)
        truth = torch.cat([t.gt_boxes.tensor for t in gt_instances])
        loss_box = self.box_loss(
            full_precision(deltas[image, prior]),
            anchors[prior],
            truth[matches[image, prior]],
            self.box2box_transform,
        )
        loss_cls = self.cls_loss(logits, classes)
        normalizer = max(len(image), 1)
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box / normalizer}

    @torch.no_grad()
    def _assign(self, anchors: Tensor, gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
        """Assign ground truth to the P default boxes of each of N images.

        Returns:
            (N, P) index into the concatenated ground truth of all images and (N, P) class, K for
            what has none.
        """
        matches, classes = [], []
        first = 0
        for truth in gt_instances:
            match, label = self.anchor_matcher(pairwise_iou(truth.gt_boxes.tensor, anchors))
            of_image = torch.full_like(match, self.num_classes)
            positive = label == 1
            of_image[positive] = truth.gt_classes[match[positive]]
            matches.append(match + first)
            classes.append(of_image)
            first += len(truth)
        return torch.stack(matches), torch.stack(classes)

    def decode(
        self, maps: list[Tensor], predictions: Predictions, input_size: tuple[int, int]
    ) -> Candidates:
        """The best candidates of each class of one image, their boxes decoded."""
        anchors = torch.cat(self.anchor_generator(maps))
        logits, deltas = (torch.cat(levels) for levels in predictions)
        scores = full_precision(logits).softmax(dim=1)[:, :-1].t()  # (K, P)
        limit = self.postprocess.topk_candidates
        if 0 <= limit < scores.shape[1]:
            scores, rows = scores.topk(limit, dim=1)
        else:
            rows = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        kinds, place = torch.nonzero(scores > self.postprocess.score_thresh, as_tuple=True)
        rows = rows[kinds, place]
        boxes = self.box2box_transform.apply_deltas(deltas[rows], anchors[rows])
        return boxes, scores[kinds, place], kinds
