"""Choice of the predictions that enter a loss."""

import torch
from torch import Tensor


def subsample(
    labels: Tensor, *, num_samples: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random (Faster R-CNN, section 3.1.3).

    Args:
        labels: (N,) integers; -1 is ignored, ``background`` is negative, the others are positive.
        num_samples: how many to draw in all; fewer come back where there are not enough.
        positive_fraction: the largest share of positives; negatives fill the rest.
        background: the label of negatives.

    Returns:
        int64 indices of the positives and of the negatives, in random order. Two permutations are
        drawn from torch's global generator, positives first, as Detectron2 does.
    """
    positive = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    negative = torch.nonzero(labels == background).squeeze(1)
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    first = torch.randperm(positive.numel(), device=labels.device)[:num_positive]
    second = torch.randperm(negative.numel(), device=labels.device)[:num_negative]
    return positive[first], negative[second]
