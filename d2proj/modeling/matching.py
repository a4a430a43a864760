"""Assignment of ground truth to predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Match by thresholds on the quality (IoU) of each prediction's best ground truth.

    Args:
        thresholds: ascending bounds between the intervals of quality.
        labels: label of each interval, one more than thresholds: 1 positive, 0 negative, -1
            ignored.
        allow_low_quality_matches: also make positive the predictions that are best for some ground
            truth (all of those, where several tie), so that none goes unmatched (Faster R-CNN,
            section 3.1.2).
    """

    def __init__(
        self,
        *,
        thresholds: Sequence[float],
        labels: Sequence[int],
        allow_low_quality_matches: bool = False,
    ) -> None:
        if list(thresholds) != sorted(thresholds) or len(labels) != len(thresholds) + 1:
            raise ValueError(
                "a matcher takes ascending thresholds and one label more, "
                f"got {list(thresholds)} and {list(labels)}"
            )
        if any(label not in (-1, 0, 1) for label in labels):
            raise ValueError(f"matcher labels must be -1, 0 or 1, got {list(labels)}")
        self.thresholds = list(thresholds)
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Match predictions to ground truth.

        Args:
            quality: (G, P) quality of each pair, G ground truths and P predictions.

        Returns:
            (P,) int64 index of the best ground truth (0 where there is none) and (P,) int8 label.
            Without ground truth every prediction gets the label of the lowest interval.
        """
        num_truths, num_predictions = quality.shape
        if num_truths == 0 or num_predictions == 0:
            matches = quality.new_zeros(num_predictions, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = quality.max(dim=0)
        labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            labels.masked_fill_(best >= threshold, label)
        if self.allow_low_quality_matches:
            best_of_truth = quality.amax(dim=1, keepdim=True)
            # A truth that overlaps nothing is best for nothing (not for all, at quality 0).
            is_best = (quality == best_of_truth) & (best_of_truth > 0)
            labels.masked_fill_(is_best.any(dim=0), 1)
        return matches, labels


class BipartiteMatcher:
    """Give each ground truth one prediction of its own, then match by a threshold (SSD).

    The pair of the best quality of all is matched and both leave, and so on until every ground
    truth has a prediction (Liu et al. 2016, section 2.2, as in the authors' code): it keeps it even
    where another ground truth overlaps that prediction more. The predictions that are left take the
    ground truth that they overlap most, if by ``threshold`` or more. Where two ground truths have
    the same best prediction, the worse of them takes its next best (in torchvision it goes without,
    or the better one does).

    Args:
        threshold: lowest quality of a positive that was not chosen for a ground truth.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Match predictions to ground truth.

        Args:
            quality: (G, P) quality of each pair, G ground truths and P predictions.

        Returns:
            (P,) int64 index of the ground truth (0 where there is none) and (P,) int8 label, 1
            positive and 0 negative. A ground truth that overlaps nothing gets nothing.
        """
        num_truths, num_predictions = quality.shape
        if num_truths == 0 or num_predictions == 0:
            matches = quality.new_zeros(num_predictions, dtype=torch.int64)
            return matches, torch.zeros_like(matches, dtype=torch.int8)
        best, matches = quality.max(dim=0)
        labels = (best >= self.threshold).to(torch.int8)
        left = quality.clone()
        for _ in range(min(num_truths, num_predictions)):
            pair = left.argmax().view(1)  # kept on the device: nothing waits for it
            truth = torch.div(pair, num_predictions, rounding_mode="floor")
            prediction = pair % num_predictions
            overlaps = left.view(-1)[pair] > 0
            matches[prediction] = torch.where(overlaps, truth, matches[prediction])
            labels[prediction] = labels[prediction].masked_fill(overlaps, 1)
            left.index_fill_(0, truth, -1.0)
            left.index_fill_(1, prediction, -1.0)
        return matches, labels
