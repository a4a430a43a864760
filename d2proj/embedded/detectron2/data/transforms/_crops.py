"""Augmentations that cut a part out of the image."""

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    CropTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
)

from .augmentation import Augmentation
from .transform import ExtentTransform


class RandomExtent(Augmentation):
    """Cut out a rectangle of drawn size and place, black where it reaches beyond the image.

    Args:
        scale_range: Interval of the rectangle's size over the image's.
        shift_range: (x, y), how far the rectangle's middle may move from the image's, in halves of
            the image's sides.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(self.scale_range[0], self.scale_range[1])
        rect = np.array([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height]) * scale
        rect[0::2] += self.shift_range[0] * width * (np.random.rand() - 0.5)
        rect[1::2] += self.shift_range[1] * height * (np.random.rand() - 0.5)
        rect[0::2] += 0.5 * width
        rect[1::2] += 0.5 * height
        x0, y0, x1, y1 = rect
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))


class FixedSizeCrop(Augmentation):
    """Crop at random where the image is larger than ``crop_size``, pad where it is smaller.

    Args:
        crop_size: (height, width).
        pad: Pad right and bottom up to ``crop_size``; otherwise the result may be smaller.
        pad_value: Value of the padding in the image.
        seg_pad_value: Label of the padding in a segmentation.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        size = np.array(image.shape[:2])
        crop_h, crop_w = self.crop_size
        room = np.maximum(size - (crop_h, crop_w), 0)
        # One draw for both sides.
        top, left = np.round(room * np.random.uniform(0.0, 1.0)).astype(int)
        steps: list[Transform] = [
            CropTransform(left, top, crop_w, crop_h, int(size[1]), int(size[0]))
        ]
        if self.pad:
            cropped_h, cropped_w = np.minimum(size, (crop_h, crop_w))
            steps.append(
                PadTransform(
                    0,
                    0,
                    crop_w - cropped_w,
                    crop_h - cropped_h,
                    cropped_w,
                    cropped_h,
                    self.pad_value,
                    self.seg_pad_value,
                )
            )
        return TransformList(steps)


class RandomCrop(Augmentation):
    """Crop a rectangle at a drawn place.

    Args:
        crop_type: How ``crop_size`` is meant: "relative" is parts of (height, width);
            "relative_range" the least such parts, the most being 1; "absolute" is (height, width)
            in pixels; "absolute_range" the least and the most length of either side in pixels.
        crop_size: Two numbers.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float]) -> None:
        super().__init__()
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range"), crop_type
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        fits = height >= crop_h and width >= crop_w
        assert fits, f"a crop of {(crop_h, crop_w)} does not fit into {(height, width)}"
        top = np.random.randint(height - crop_h + 1)
        left = np.random.randint(width - crop_w + 1)
        return CropTransform(left, top, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the crop's (height, width) for an image of ``image_size``."""
        height, width = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], height), min(self.crop_size[1], width)
        if self.crop_type == "absolute_range":
            least, most = self.crop_size
            assert least <= most, f"crop_size {self.crop_size} is not an interval"
            crop_h = np.random.randint(min(height, least), min(height, most) + 1)
            return crop_h, np.random.randint(min(width, least), min(width, most) + 1)
        part_h, part_w = self.crop_size
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            part_h, part_w = least + np.random.rand(2) * (1 - least)
        return int(height * part_h + 0.5), int(width * part_w + 0.5)


class MinIoURandomCrop(Augmentation):
    """SSD's crop: of a drawn size and place that overlaps every box by a drawn least IoU.

    A crop must also hold the centre of at least one box (Liu et al. 2016, section 2.2).

    Args:
        min_ious: The least IoUs to draw from; "the whole image" and "any crop" are added to them.
        min_crop_size: Least side of the crop, as a part of the image's.
        mode_trials: How often to draw a least IoU.
        crop_trials: How many crops to try for each.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        self._init(locals())
        self.sample_mode = (1, *min_ious, 0)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """Draw the crop; ``boxes`` is float[N, 4], XYXY in pixels."""
        size = image.shape[:2]
        for _ in range(self.mode_trials):
            least_iou = np.random.choice(self.sample_mode)
            if least_iou == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                drawn = self._draw_crop(*size)
                if drawn is None:
                    continue
                left, top, crop_w, crop_h = drawn
                patch = np.array((left, top, left + crop_w, top + crop_h)).astype(int)
                if _patch_suits(patch, boxes, least_iou):
                    return CropTransform(int(left), int(top), int(crop_w), int(crop_h))
        return NoOpTransform()

    def _draw_crop(self, height: int, width: int) -> tuple[float, float, float, float] | None:
        """Draw (left, top, width, height), or None if it came out too narrow or too flat."""
        crop_w = np.random.uniform(self.min_crop_size * width, width)
        crop_h = np.random.uniform(self.min_crop_size * height, height)
        if crop_h / crop_w < 0.5 or crop_h / crop_w > 2:
            return None
        # With one argument numpy takes it for the *lower* end and 1 for the upper; drawn from
        # [1, width - crop_w] all the same, and needed for the same crops under the same seed.
        left = np.random.uniform(width - crop_w)
        top = np.random.uniform(height - crop_h)
        return left, top, crop_w, crop_h


def _patch_suits(patch: np.ndarray, boxes: np.ndarray | None, least_iou: float) -> bool:
    """Whether each box overlaps the patch by ``least_iou`` and one has its centre inside."""
    if patch[0] == patch[2] or patch[1] == patch[3]:
        return False
    if boxes is None or len(boxes) == 0:
        return True
    corners = np.maximum(boxes[:, :2], patch[:2]), np.minimum(boxes[:, 2:], patch[2:])
    intersection = np.clip(corners[1] - corners[0], 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = areas + (patch[2:] - patch[:2]).prod() - intersection
    if (intersection / union).min() < least_iou:
        return False
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return bool(((centres > patch[:2]) & (centres < patch[2:])).all(axis=1).any())
