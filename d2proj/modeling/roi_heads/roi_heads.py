"""Sampling of proposals, their features, and one or more stages of box prediction."""

import math
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from d2proj.modeling.boxes import pairwise_iou
from d2proj.modeling.matching import Matcher
from d2proj.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from d2proj.modeling.roi_heads.pooler import RoIPooler
from d2proj.modeling.sampling import subsample


class RoIHeads(nn.Module):
    """Box head of Fast and Faster R-CNN: one stage.

    A detector of several stages overrides :meth:`_train` and :meth:`_infer` and calls :meth:`_run`
    once per stage.

    Args:
        in_features: names of the maps that the pooler reads.
        num_classes: K; background has the label K.
        box_pooler, box_head, box_predictor: proposals to features to vectors to scores and boxes.
        proposal_matcher: assigns ground truth to proposals.
        batch_size_per_image: proposals that enter the losses.
        positive_fraction: the largest share of foreground among them.
        proposal_append_gt: ground truth boxes join the proposals when training, so that there are
            positives from the start.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        num_classes: int,
        box_pooler: RoIPooler,
        box_head: nn.Module,
        box_predictor: FastRCNNOutputLayers,
        proposal_matcher: Matcher,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        proposal_append_gt: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.proposal_matcher = proposal_matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_append_gt = proposal_append_gt

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections and no losses; with ground truth, the sampled proposals and losses.

        The images themselves are not read; they are there because Detectron2's heads take them.
        """
        maps = [features[name] for name in self.in_features]
        if gt_instances is not None:
            sampled = self.label_and_sample(proposals, gt_instances)
            return sampled, self._train(maps, sampled)
        return self._infer(maps, proposals), {}

    def _train(self, maps: list[Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        predictions = self._run(maps, proposals, self.box_head, self.box_predictor)
        return self.box_predictor.losses(predictions, proposals)

    def _infer(self, maps: list[Tensor], proposals: list[Instances]) -> list[Instances]:
        predictions = self._run(maps, proposals, self.box_head, self.box_predictor)
        return self.box_predictor.inference(predictions, proposals)

    def _run(
        self, maps: list[Tensor], proposals: list[Instances], head: nn.Module, predictor: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """One stage: logits and deltas of all proposals, image by image."""
        boxes = [p.proposal_boxes.tensor for p in proposals]
        return predictor(head(self.box_pooler(maps, boxes)))

    @torch.no_grad()
    def label_and_sample(
        self, proposals: list[Instances], gt_instances: list[Instances]
    ) -> list[Instances]:
        """Draw the proposals to train on; adds ``gt_classes`` (K: background) and ``gt_boxes``.

        In an image without ground truth everything is background, with zeros for ``gt_boxes``.
        """
        return [self._sample(p, truth) for p, truth in zip(proposals, gt_instances, strict=True)]

    def _sample(self, proposals: Instances, truth: Instances) -> Instances:
        boxes = proposals.proposal_boxes.tensor
        logits = proposals.objectness_logits
        gt_boxes, gt_classes = truth.gt_boxes.tensor, truth.gt_classes
        if self.proposal_append_gt and len(gt_boxes):
            boxes = torch.cat((boxes, gt_boxes))
            certain = math.log((1.0 - 1e-10) / 1e-10)
            logits = torch.cat((logits, logits.new_full((len(gt_boxes),), certain)))
        matches, labels = self.proposal_matcher(pairwise_iou(gt_boxes, boxes))
        if len(gt_boxes):
            classes = gt_classes[matches]
            classes[labels == 0] = self.num_classes
            classes[labels == -1] = -1
            matched = gt_boxes[matches]
        else:
            classes = torch.full_like(matches, self.num_classes)
            matched = torch.zeros_like(boxes)
        positive, negative = subsample(
            classes,
            num_samples=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            background=self.num_classes,
        )
        chosen = torch.cat((positive, negative))
        return Instances(
            proposals.image_size,
            proposal_boxes=Boxes(boxes[chosen]),
            objectness_logits=logits[chosen],
            gt_classes=classes[chosen],
            gt_boxes=Boxes(matched[chosen]),
        )
