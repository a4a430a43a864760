"""Augmentations of place: flips, sizes, crops, rotations; and of colour.

Random draws are made from numpy's global generator with the same calls and in the same order as
Detectron2's, so that one seed gives the same transforms under either.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    HFlipTransform,
    NoOpTransform,
    Transform,
    VFlipTransform,
)

from ._colors import RandomBrightness, RandomContrast, RandomLighting, RandomSaturation
from ._crops import FixedSizeCrop, MinIoURandomCrop, RandomCrop, RandomExtent
from .augmentation import Augmentation, as_augmentation
from .transform import BILINEAR, ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


class RandomApply(Augmentation):
    """Apply an augmentation or transform with probability ``prob``."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        super().__init__()
        self.aug = as_augmentation(tfm_or_aug) if tfm_or_aug is not None else NoOpTransform()
        assert 0.0 <= prob <= 1.0, f"Probablity must be between 0.0 and 1.0 (given: {prob})"
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._happens() else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._happens() else NoOpTransform()

    def _happens(self) -> bool:
        return bool(self._rand_range() < self.prob)


class RandomFlip(Augmentation):
    """Flip with probability ``prob``, either left to right or upside down."""

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        super().__init__()
        if horizontal and vertical:
            raise ValueError("Cannot do both horiz and vert. Please use two Flip instead.")
        if not horizontal and not vertical:
            raise ValueError("At least one of horiz or vert has to be True!")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to ``shape``: (height, width), or one number for both."""

    def __init__(self, shape: int | tuple[int, int], interp: int = BILINEAR) -> None:
        shape = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        new_h, new_w = self.shape
        return ResizeTransform(height, width, new_h, new_w, self.interp)


class RandomResize(Augmentation):
    """Resize to one of ``shape_list``'s (height, width)."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = BILINEAR) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        new_h, new_w = self.shape_list[np.random.randint(low=0, high=len(self.shape_list))]
        return ResizeTransform(height, width, new_h, new_w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale so that the shorter side gets a drawn length, unless the longer one gets too long.

    Args:
        short_edge_length: [smallest, largest] for "range" (both inclusive), the lengths to choose
            from for "choice"; one number for always the same.
        max_size: Limit of the longer side; the image is made smaller to keep it.
        sample_style: "range" or "choice".
        interp: PIL's interpolation.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if sample_style == "range":
            assert len(short_edge_length) == 2, (
                "short_edge_length must be two values using 'range' sample style. "
                f"Got {short_edge_length}!"
            )
        self.is_range = sample_style == "range"
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """(height, width) after scaling an image of (oldh, oldw)."""
        target = float(short_edge_length)
        if oldh < oldw:
            new_h, new_w = target, target / oldh * oldw
        else:
            new_h, new_w = target / oldw * oldh, target
        longer = max(new_h, new_w)
        if longer > max_size:
            shrink = max_size / longer
            new_h, new_w = new_h * shrink, new_w * shrink
        return int(new_h + 0.5), int(new_w + 0.5)


class ResizeScale(Augmentation):
    """Scale, keeping the aspect ratio, to fit into a target that is itself scaled at random.

    Args:
        min_scale, max_scale: Interval of the target's scale.
        target_height, target_width: The target.
        interp: PIL's interpolation.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = BILINEAR,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        scale = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        size = np.array((height, width))
        target = np.multiply((self.target_height, self.target_width), scale)
        new_h, new_w = np.round(size * np.min(target / size)).astype(int)
        return ResizeTransform(height, width, int(new_h), int(new_w), self.interp)


class RandomRotation(Augmentation):
    """Rotate counter-clockwise by a drawn angle.

    Args:
        angle: [smallest, largest] in degrees for "range", the angles for "choice"; one number for
            always the same.
        expand: Make the result large enough for all of the image.
        center: Where to rotate about, as parts of (width, height): the corners
            [[x0, y0], [x1, y1]] of a region for "range", the points for "choice"; None: the middle.
        sample_style: "range" or "choice".
        interp: OpenCV's interpolation.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Any = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        super().__init__()
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(angle, float | int):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], float | int):
            center = (center, center)
        self.is_range = sample_style == "range"
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = (np.random.uniform(x0, x1), np.random.uniform(y0, y1))
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (width * center[0], height * center[1])
        return RotationTransform(height, width, angle, self.expand, center, self.interp)
