"""Losses of predicted boxes that are encoded relative to reference boxes."""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.ops import generalized_box_iou_loss


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
        return self.weight * generalized_box_iou_loss(boxes, targets, "sum", self.eps)
