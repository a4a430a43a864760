"""SSD's zooming out (Liu et al. 2016, section 3.6)."""

from collections.abc import Sequence

import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, PadTransform, Transform


class ExpandTransform(PadTransform):
    """Put the image on a larger canvas of one colour.

    Args:
        left, top: pixels of canvas on these sides.
        width, height: of the canvas.
        image_size: (height, width) of the image.
        fill: the colour, a value for each channel.
    """

    def __init__(
        self,
        left: int,
        top: int,
        width: int,
        height: int,
        image_size: tuple[int, int],
        fill: Sequence[float],
    ) -> None:
        right, bottom = width - left - image_size[1], height - top - image_size[0]
        super().__init__(left, top, right, bottom, image_size[1], image_size[0])
        self.fill = tuple(fill)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) -> the canvas with the image on it."""
        height, width = img.shape[:2]
        size = (height + self.y0 + self.y1, width + self.x0 + self.x1, img.shape[2])
        canvas = np.empty(size, dtype=img.dtype)
        canvas[...] = np.asarray(self.fill).astype(img.dtype)
        canvas[self.y0 : self.y0 + height, self.x0 : self.x0 + width] = img
        return canvas


class RandomExpand(Augmentation):
    """Put the image somewhere on a canvas that is larger by a drawn ratio: small objects.

    Args:
        fill: colour of the canvas in the image's own order of channels: the mean that the model
            subtracts, so that it becomes 0.
        max_ratio: sides of the canvas are 1 to ``max_ratio`` times the image's.
        prob: chance that it happens.
    """

    def __init__(
        self,
        *,
        fill: Sequence[float] = (104, 117, 123),
        max_ratio: float = 4.0,
        prob: float = 0.5,
    ) -> None:
        super().__init__()
        if max_ratio < 1:
            raise ValueError(f"max_ratio must be at least 1, got {max_ratio}")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the canvas and the place on it."""
        if np.random.rand() >= self.prob:  # noqa: NPY002 - Detectron2's generator
            return NoOpTransform()
        height, width = image.shape[:2]
        ratio = np.random.uniform(1.0, self.max_ratio)  # noqa: NPY002
        canvas_h, canvas_w = int(height * ratio), int(width * ratio)
        left = int(np.random.uniform(0, canvas_w - width))  # noqa: NPY002
        top = int(np.random.uniform(0, canvas_h - height))  # noqa: NPY002
        return ExpandTransform(left, top, canvas_w, canvas_h, (height, width), self.fill)
