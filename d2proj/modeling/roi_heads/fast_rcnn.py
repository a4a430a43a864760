"""Classification and box regression of proposals (Girshick 2015, "Fast R-CNN")."""

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.init import init_normal
from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import full_precision
from d2proj.modeling.losses import BoxLoss
from d2proj.modeling.postprocess import PerClassNMS


class FastRCNNOutputLayers(nn.Module):
    """A softmax over K classes and background (last), and box deltas for each class.

    State-dict names are Detectron2's: ``cls_score`` (K + 1 rows), ``bbox_pred`` (4 K rows; 4 if
    agnostic).

    Args:
        in_features: length of the vectors that come in.
        num_classes: K.
        box2box_transform: how boxes are encoded relative to proposals.
        box_loss: of the deltas of foreground proposals, summed and divided by the number of all
            proposals.
        postprocess: turns scored boxes into detections.
        class_agnostic: one box for all classes.
    """

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        box2box_transform: Box2BoxTransform,
        box_loss: BoxLoss,
        postprocess: PerClassNMS,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.box_loss = box_loss
        self.postprocess = postprocess
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 * (1 if class_agnostic else num_classes))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            init_normal(layer, std=std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_features) -> logits (R, K + 1) and deltas (R, 4 K) of R proposals."""
        return full_precision(self.cls_score(x)), full_precision(self.bbox_pred(x))

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_cls`` (cross entropy) and ``loss_box_reg``.

        Args:
            predictions: what :meth:`forward` gave for all images' proposals.
            proposals: with ``proposal_boxes``, ``gt_classes`` (K: background) and ``gt_boxes``.
        """
        logits, deltas = predictions
        classes = torch.cat([p.gt_classes for p in proposals])
        if classes.numel() == 0:
            # Zero, but with every parameter in the graph (DistributedDataParallel waits for them).
            return {"loss_cls": logits.sum() * 0.0, "loss_box_reg": deltas.sum() * 0.0}
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        truths = torch.cat([p.gt_boxes.tensor for p in proposals])
        positive = torch.nonzero(classes < self.num_classes).squeeze(1)
        per_class = deltas.unflatten(1, (-1, 4))
        column = classes[positive] if per_class.shape[1] > 1 else torch.zeros_like(positive)
        loss_box = self.box_loss(
            per_class[positive, column],
            boxes[positive],
            truths[positive],
            self.box2box_transform,
        )
        return {
            "loss_cls": F.cross_entropy(logits, classes),
            "loss_box_reg": loss_box / classes.numel(),
        }

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Detections of each image: ``pred_boxes``, ``scores``, ``pred_classes``."""
        counts = [len(p) for p in proposals]
        logits, deltas = (part.split(counts) for part in predictions)
        return [self._image(x, d, p) for x, d, p in zip(logits, deltas, proposals, strict=True)]

    def _image(self, logits: Tensor, deltas: Tensor, proposals: Instances) -> Instances:
        scores = logits.softmax(dim=1)[:, :-1]
        # Most (proposal, class) pairs score next to nothing: only the rest are decoded.
        rows, classes = torch.nonzero(scores > self.postprocess.score_thresh).unbind(1)
        per_class = deltas.unflatten(1, (-1, 4))
        column = classes if per_class.shape[1] > 1 else torch.zeros_like(classes)
        boxes = self.box2box_transform.apply_deltas(
            per_class[rows, column], proposals.proposal_boxes.tensor[rows]
        )
        return self.postprocess(boxes, scores[rows, classes], classes, proposals.image_size)
