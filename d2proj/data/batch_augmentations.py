"""Augmentations of whole batches: what all images of an iteration share, or take of each other.

They run in the loader's processes, after the images' own augmentations.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

Batch = list[dict[str, Any]]


class BatchAugmentation(ABC):
    """Base of the batch augmentations.

    Python's, numpy's and torch's global generators are seeded before each call, for this process
    and iteration: what is drawn from them depends on neither the workers nor an interruption. What
    all processes must agree on is to be drawn from ``seed`` and ``iteration``.
    """

    @abstractmethod
    def __call__(self, batch: Batch, *, iteration: int, seed: int) -> Batch:
        """Augment the images that this process trains on in one iteration.

        Args:
            batch: dicts with ``image`` (uint8 tensor (C, H, W)) and ``instances`` (``gt_boxes``,
                ``gt_classes``), as the mapper gives them. They may be changed.
            iteration: of the run, from 0.
            seed: of the run.

        Returns:
            As many dicts of the same kind.
        """


class MultiScale(BatchAugmentation):
    """Another input size every few iterations, the same in all processes (YOLOv2, section 2).

    All images are scaled by one factor, with which the longest side in the batch becomes the size:
    square images, which darknet's recipes have, become squares of that size. Images that come at
    ``max_size`` are only ever made smaller.

    Args:
        min_size, max_size: smallest and largest size, pixels.
        step: between sizes; the network's stride.
        period: iterations that a size lasts.

    Raises:
        ValueError: there is no such size.
    """

    def __init__(
        self, *, min_size: int = 320, max_size: int = 608, step: int = 32, period: int = 10
    ) -> None:
        if not 0 < min_size <= max_size or step < 1 or period < 1:
            raise ValueError(
                f"MultiScale needs 0 < min_size <= max_size, step and period above 0, got "
                f"{min_size}, {max_size}, {step}, {period}"
            )
        self.sizes = list(range(min_size, max_size + 1, step))
        self.period = period

    def size(self, iteration: int, seed: int) -> int:
        """The longest side, in pixels, of an iteration's images."""
        generator = np.random.default_rng([seed, iteration // self.period])
        return int(generator.choice(self.sizes))

    def __call__(self, batch: Batch, *, iteration: int, seed: int) -> Batch:
        """See :class:`BatchAugmentation`."""
        longest = max(side for sample in batch for side in sample["image"].shape[1:])
        factor = self.size(iteration, seed) / longest
        for sample in batch:
            height, width = (max(1, round(side * factor)) for side in sample["image"].shape[1:])
            sample["instances"] = resize_instances(sample["instances"], (height, width))
            sample["image"] = resize_image(sample["image"], (height, width))
        return batch


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) to another height and width: bilinear, smoothed first where it shrinks."""
    if tuple(image.shape[1:]) == size:
        return image
    resized: Tensor = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return resized


def resize_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Ground truth of an image that is resized to another height and width."""
    height, width = instances.image_size
    factors = torch.tensor([size[1] / width, size[0] / height] * 2)
    resized = Instances(size, **instances.get_fields())
    resized.gt_boxes = Boxes(instances.gt_boxes.tensor * factors)
    return resized
