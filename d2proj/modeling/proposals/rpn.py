"""Region proposal network (Ren et al. 2015, "Faster R-CNN", section 3.1)."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_normal
from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import are_finite, clip_boxes, full_precision, pairwise_iou
from d2proj.modeling.losses import BoxLoss
from d2proj.modeling.matching import Matcher
from d2proj.modeling.priors import AnchorGenerator
from d2proj.modeling.sampling import subsample
from d2proj.ops import batched_nms


class RPNHead(nn.Module):
    """A 3x3 convolution, then 1x1 convolutions to one logit and four deltas per anchor.

    All levels share it.
    State-dict names are Detectron2's: ``conv``, ``objectness_logits``, ``anchor_deltas``.
    """

    def __init__(self, *, in_channels: int, num_anchors: int, conv_dim: int | None = None) -> None:
        super().__init__()
        channels = in_channels if conv_dim is None else conv_dim
        self.conv = Conv2d(in_channels, channels, 3, padding=1, activation=F.relu_)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            init_normal(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) -> logits (N, H * W * A) and deltas (N, H * W * A, 4) of each level."""
        logits, deltas = [], []
        for x in features:
            x = self.conv(x)
            logits.append(self.objectness_logits(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.anchor_deltas(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return logits, deltas


class RPN(nn.Module):
    """Proposals from anchors on every level, and the losses that train them.

    Args:
        in_features: names of the maps used, in the order of the anchor generator's levels.
        head: makes logits and deltas of the anchors.
        anchor_generator, anchor_matcher, box2box_transform: see their classes.
        box_loss: of the deltas of positive anchors.
        batch_size_per_image: anchors that enter the losses; also what the losses are divided by.
        positive_fraction: the largest share of positives among them.
        pre_nms_topk: best-scored anchors of each level that are decoded, (training, inference).
        post_nms_topk: proposals of an image, (training, inference).
        nms_thresh: IoU above which the lesser of two proposals of a level goes.
        min_box_size: proposals must be larger than this in width and height (pixels).
        loss_weight: multiplies both losses.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: AnchorGenerator,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        box_loss: BoxLoss,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_topk: tuple[int, int] = (2000, 1000),
        post_nms_topk: tuple[int, int] = (1000, 1000),
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.box_loss = box_loss
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = tuple(pre_nms_topk)
        self.post_nms_topk = tuple(post_nms_topk)
        self.nms_thresh = nms_thresh
        self.min_box_size = min_box_size
        self.loss_weight = loss_weight

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose.

        Returns:
            For each image, Instances with ``proposal_boxes`` and ``objectness_logits``, best first
            and without gradient; and the losses, if there is ground truth.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        losses = {}
        if gt_instances is not None:
            losses = self.losses(anchors, logits, deltas, gt_instances)
        return self.proposals(anchors, logits, deltas, images.image_sizes), losses

    def losses(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls`` (binary cross entropy) and ``loss_rpn_loc`` of the sampled anchors."""
        all_anchors = torch.cat(anchors)
        all_logits = torch.cat(logits, dim=1)
        all_deltas = torch.cat(deltas, dim=1)
        positives, negatives, references, targets = [], [], [], []
        for i, truth in enumerate(gt_instances):
            positive, negative, boxes = self._sample(all_anchors, truth.gt_boxes.tensor)
            positives.append(positive + i * len(all_anchors))
            negatives.append(negative + i * len(all_anchors))
            references.append(all_anchors[positive])
            targets.append(boxes)
        positive = torch.cat(positives)
        flat = all_logits.flatten()
        sampled = full_precision(flat[torch.cat((positive, *negatives))])
        wanted = torch.zeros_like(sampled)
        wanted[: len(positive)] = 1.0
        loss_cls = F.binary_cross_entropy_with_logits(sampled, wanted, reduction="sum")
        loss_loc = self.box_loss(
            full_precision(all_deltas.flatten(0, 1)[positive]),
            torch.cat(references),
            torch.cat(targets),
            self.box2box_transform,
        )
        scale = self.loss_weight / (self.batch_size_per_image * len(gt_instances))
        return {"loss_rpn_cls": loss_cls * scale, "loss_rpn_loc": loss_loc * scale}

    @torch.no_grad()
    def _sample(self, anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positive and negative anchors drawn, and the positives' true boxes."""
        matches, labels = self.anchor_matcher(pairwise_iou(gt_boxes, anchors))
        positive, negative = subsample(
            labels,
            num_samples=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            background=0,
        )
        return positive, negative, gt_boxes[matches[positive]]

    @torch.no_grad()
    def proposals(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The best boxes of each image: top-k of each level, decoded, clipped, NMS by level."""
        stage = 0 if self.training else 1
        boxes, scores, levels = [], [], []
        for level, (a, x, d) in enumerate(zip(anchors, logits, deltas, strict=True)):
            k = min(self.pre_nms_topk[stage], x.shape[1])
            best, index = full_precision(x).topk(k, dim=1)
            chosen = d.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(self.box2box_transform.apply_deltas(chosen, a[index]))
            scores.append(best)
            levels.append(torch.full((k,), level, device=index.device))
        all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        all_levels = torch.cat(levels)
        return [
            self._select(all_boxes[i], all_scores[i], all_levels, size, self.post_nms_topk[stage])
            for i, size in enumerate(image_sizes)
        ]

    def _select(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, size: tuple[int, int], topk: int
    ) -> Instances:
        finite = are_finite(boxes, scores)
        boxes = clip_boxes(boxes, size)
        large = (boxes[:, 2:] - boxes[:, :2] > self.min_box_size).all(dim=1)
        keep = torch.nonzero(finite & large).squeeze(1)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        keep = batched_nms(boxes, scores, levels, self.nms_thresh)[:topk]
        return Instances(size, proposal_boxes=Boxes(boxes[keep]), objectness_logits=scores[keep])
