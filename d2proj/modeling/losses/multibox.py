"""SSD's classification loss (Liu et al. 2016, section 2.2, "Hard negative mining")."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.modeling.boxes import full_precision


class HardNegativeSoftmaxLoss(nn.Module):
    """Cross entropy of the softmax with background, over positives and the hardest negatives.

    Of each image the negatives of the largest loss are taken, ``negative_ratio`` for each positive;
    an image without positives adds nothing.

    Args:
        negative_ratio: negatives for each positive.
    """

    def __init__(self, *, negative_ratio: float = 3.0) -> None:
        super().__init__()
        self.negative_ratio = negative_ratio

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Scalar loss, summed.

        Args:
            logits: (N, P, K + 1), the background last.
            classes: (N, P) int64, K for negatives.
        """
        logits = full_precision(logits)
        losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        losses = losses.view_as(classes)
        positive = classes != logits.shape[-1] - 1
        return losses[positive | self._hardest(losses.detach(), positive)].sum()

    def _hardest(self, losses: Tensor, positive: Tensor) -> Tensor:
        """Which negatives count: (N, P) bool."""
        wanted = self.negative_ratio * positive.sum(dim=1, keepdim=True)
        order = losses.masked_fill(positive, -torch.inf).argsort(
            dim=1, descending=True, stable=True
        )
        rank = order.argsort(dim=1)
        return (rank < wanted) & ~positive
