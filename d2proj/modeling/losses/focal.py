"""Focal loss (Lin et al. 2017, "Focal loss for dense object detection", eq. 5)."""

from torch import Tensor, nn

from d2proj.modeling.boxes import full_precision
from d2proj.ops import sigmoid_focal_loss


class FocalLoss(nn.Module):
    """Sum of ``-alpha_t (1 - p_t)^gamma log p_t`` over independent binary classifications.

    Args:
        alpha: weight of positives; negatives weigh ``1 - alpha``.
        gamma: how much easy examples are muted.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            logits: (N, K) for K classes.
            classes: (N,) int64: the class of a positive, K for a negative, -1 for one to ignore.
        """
        return sigmoid_focal_loss(full_precision(logits), classes, self.alpha, self.gamma, "sum")
