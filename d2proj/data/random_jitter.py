"""darknet's random crop."""

from typing import Any

import numpy as np
from detectron2.data import transforms as T


class RandomJitter(T.Augmentation):
    """Moves each side of the image in or out by up to a fraction of its length (darknet).

    What lies outside the image is black. Follow it with a resize: proportions change too.

    Args:
        jitter: the fraction, in [0, 0.5).

    Raises:
        ValueError: the fraction is not in that range.
    """

    def __init__(self, jitter: float = 0.3) -> None:
        super().__init__()
        if not 0 <= jitter < 0.5:
            raise ValueError(f"jitter must be in [0, 0.5), got {jitter}")
        self.jitter = jitter

    def get_transform(self, image: Any) -> T.Transform:
        """The transform of one image (H, W, C)."""
        height, width = image.shape[:2]
        # numpy's global generator, as all of Detectron2's augmentations: the loader seeds it.
        inset = np.random.uniform(-self.jitter, self.jitter, 4)  # noqa: NPY002
        left, top, right, bottom = inset * [width, height, width, height]
        size = (max(1, round(height - top - bottom)), max(1, round(width - left - right)))
        return T.ExtentTransform((left, top, width - right, height - bottom), size)
