"""Losses of predicted boxes that are encoded relative to reference boxes."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.boxes import box_area


class BoxLoss(nn.Module):
    """Sum over boxes of a loss between decoded predictions and targets."""

    @abstractmethod
    def forward(
        self, deltas: Tensor, references: Tensor, targets: Tensor, coder: Box2BoxTransform
    ) -> Tensor:
        """Scalar loss.

        Args:
            deltas: (N, 4) predictions.
            references: (N, 4) boxes that the deltas are relative to (anchors, proposals).
            targets: (N, 4) ground truth boxes.
            coder: relates the three.
        """


class SmoothL1BoxLoss(BoxLoss):
    """Smooth L1 of the deltas (Fast R-CNN, eq. 3).

    Args:
        beta: error at which it turns from square to linear; 0 gives L1.
        weight: multiplies the loss.
    """

    def __init__(self, *, beta: float = 0.0, weight: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.weight = weight

    def forward(
        self, deltas: Tensor, references: Tensor, targets: Tensor, coder: Box2BoxTransform
    ) -> Tensor:
        """As :meth:`BoxLoss.forward`."""
        wanted = coder.get_deltas(references, targets)
        return self.weight * F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=self.beta)


class GIoUBoxLoss(BoxLoss):
    """``1 - GIoU`` of the decoded boxes (Rezatofighi et al. 2019, algorithm 1).

    Args:
        weight: multiplies the loss.
        eps: added to the areas divided by, so that empty boxes give finite gradients.
    """

    def __init__(self, *, weight: float = 1.0, eps: float = 1e-7) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(
        self, deltas: Tensor, references: Tensor, targets: Tensor, coder: Box2BoxTransform
    ) -> Tensor:
        """As :meth:`BoxLoss.forward`."""
        boxes = coder.apply_deltas(deltas, references)
        x1, y1, x2, y2 = boxes.unbind(-1)
        u1, v1, u2, v2 = targets.unbind(-1)
        overlap_w = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
        overlap_h = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
        intersection = overlap_w * overlap_h
        union = box_area(boxes) + box_area(targets) - intersection
        hull_w = torch.maximum(x2, u2) - torch.minimum(x1, u1)
        hull_h = torch.maximum(y2, v2) - torch.minimum(y1, v1)
        hull = hull_w * hull_h
        giou = intersection / (union + self.eps) - (hull - union) / (hull + self.eps)
        return self.weight * (1.0 - giou).sum()
