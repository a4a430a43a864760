"""Focal loss (Lin et al. 2017, "Focal loss for dense object detection", eq. 5)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.boxes import full_precision


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
        num_classes = logits.shape[1]
        logits = full_precision(logits)
        # Nearly all targets are 0: take them all to be so, then exchange the positives' few terms.
        weight = (classes >= 0).to(logits.dtype)
        loss = self._negative(logits).sum(dim=1).dot(weight)
        rows = torch.nonzero((classes >= 0) & (classes < num_classes)).squeeze(1)
        positive = logits[rows, classes[rows]]
        return loss + (self._positive(positive) - self._negative(positive)).sum()

    def _negative(self, x: Tensor) -> Tensor:
        return (1 - self.alpha) * torch.sigmoid(x).pow(self.gamma) * F.softplus(x)

    def _positive(self, x: Tensor) -> Tensor:
        return self.alpha * torch.sigmoid(-x).pow(self.gamma) * F.softplus(-x)
