"""Dense detectors: images, backbone and neck, head, then losses, or decoding and postprocessing.

A system supplies what it predicts (:attr:`DenseDetector.head`), its losses and its decoder.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2proj.modeling.boxes import full_precision
from d2proj.modeling.meta_arch.base import Detector
from d2proj.modeling.postprocess import PerClassNMS

Predictions = tuple[list[Tensor], ...]
Candidates = tuple[Tensor, Tensor, Tensor]


class DenseDetector(Detector):
    """Skeleton of the detectors that predict at every cell.

    Args:
        head: maps of all levels to predictions: a tuple of lists, one tensor (N, ...) per level.
        head_in_features: names of the maps that the head takes, finest first.
        postprocess: candidates of an image to its detections.
        **detector: see :class:`Detector`.
    """

    def __init__(
        self,
        *,
        head: nn.Module,
        head_in_features: Sequence[str],
        postprocess: PerClassNMS,
        **detector: Any,
    ) -> None:
        super().__init__(**detector)
        self.head = head
        self.head_in_features = list(head_in_features)
        self.postprocess = postprocess

    def losses(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of a batch."""
        maps = [features[name] for name in self.head_in_features]
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        return self.prediction_losses(maps, self.head(maps), gt_instances, size)

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Detections of each image, in the frame of the network's input."""
        maps = [features[name] for name in self.head_in_features]
        predictions = self.head(maps)
        input_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        results = []
        for i, size in enumerate(images.image_sizes):
            of_image = tuple([level[i] for level in part] for part in predictions)
            boxes, scores, classes = self.decode(maps, of_image, input_size)
            results.append(self.postprocess(boxes, scores, classes, size))
        return results

    @abstractmethod
    def prediction_losses(
        self,
        maps: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            maps: the maps that the head took, for the priors' sake.
            predictions: what the head gave.
            gt_instances: ``gt_boxes`` and ``gt_classes`` of each image.
            input_size: height and width of the network's input, padding included.
        """

    @abstractmethod
    def decode(
        self, maps: list[Tensor], predictions: Predictions, input_size: tuple[int, int]
    ) -> Candidates:
        """Candidate boxes (N, 4), scores (N,) and classes (N,) of one image, before NMS."""


def best_candidates(
    logits: Tensor, *, score_thresh: float, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (prior, class) pairs by sigmoid score, best first.

    Args:
        logits: (P, K).
        score_thresh: only scores above this.
        topk: at most so many; no limit if negative.

    Returns:
        scores, rows (priors) and classes, each (N,).
    """
    scores = full_precision(logits).flatten().sigmoid()
    index = torch.nonzero(scores > score_thresh).squeeze(1)
    scores = scores[index]
    limit = len(index) if topk < 0 else min(topk, len(index))
    scores, order = scores.topk(limit)
    index = index[order]
    num_classes = logits.shape[1]
    return scores, torch.div(index, num_classes, rounding_mode="floor"), index % num_classes
