"""SSD's crop around objects (Liu et al. 2016, section 2.2, "Data augmentation")."""

from collections.abc import Sequence

import numpy as np
from detectron2.data.transforms import Augmentation, CropTransform, NoOpTransform, Transform


class CentreCropTransform(CropTransform):
    """A crop that keeps the boxes whose centre is inside.

    A transform answers with as many boxes as it was given. Those whose centre lies outside (or on
    the edge) therefore come back as empty boxes, which d2proj's mapper and Detectron2's leave out.
    """

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in the crop's frame, not cut to it; empty if the centre is outside."""
        box = np.asarray(box, dtype=np.float64).reshape(-1, 4)
        inside = centres_inside(box, (self.x0, self.y0, self.x0 + self.w, self.y0 + self.h))
        moved = box - np.array([self.x0, self.y0, self.x0, self.y0])
        return np.where(inside[:, None], moved, 0.0)


class SSDRandomCrop(Augmentation):
    """The whole image, or a patch in which objects are seen to a drawn extent.

    One of these is drawn: the whole image; a patch that has at least the IoU m with some object, m
    being one of ``min_ious``; any patch. Patches have sides of ``min_scale`` to 1 of the image's,
    and an aspect ratio (of the patch, in pixels) in ``aspect_ratio``; the centre of some object,
    and of the one that has the IoU, lies in them. Where ``trials`` patches do not suit, it is drawn
    anew. Objects whose centre is outside are dropped. An image without objects stays whole.

    Unlike Detectron2's ``MinIoURandomCrop``, which wants every object of the image to have the IoU
    and keeps all that are cut, this is the rule of SSD's authors' code (and of torchvision's
    ``RandomIoUCrop``).

    Args:
        min_ious: see above.
        min_scale: see above.
        aspect_ratio: least and most width / height of the patch.
        trials: patches tried for each draw.
    """

    def __init__(
        self,
        *,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_scale: float = 0.3,
        aspect_ratio: tuple[float, float] = (0.5, 2.0),
        trials: int = 50,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """Draw the patch; ``boxes`` is float (N, 4), x1 y1 x2 y2 in pixels."""
        height, width = image.shape[:2]
        areas = None if boxes is None else (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        if areas is None or not (areas > 0).any():
            return NoOpTransform()
        boxes = boxes[areas > 0]
        options = (None, *self.min_ious, 0.0)
        while True:  # ends: the whole image is one of the options
            least = options[np.random.randint(len(options))]  # noqa: NPY002 - Detectron2's
            if least is None:
                return NoOpTransform()
            for _ in range(self.trials):
                patch = self._draw_patch(height, width)
                if patch is not None and _suits(patch, boxes, least):
                    left, top, right, bottom = patch
                    return CentreCropTransform(left, top, right - left, bottom - top, width, height)

    def _draw_patch(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """A patch (left, top, right, bottom), or None if its aspect ratio is out of bounds."""
        scale_w, scale_h, place_x, place_y = np.random.rand(4)  # noqa: NPY002
        patch_w = int(width * (self.min_scale + (1 - self.min_scale) * scale_w))
        patch_h = int(height * (self.min_scale + (1 - self.min_scale) * scale_h))
        if min(patch_w, patch_h) < 1:
            return None
        if not self.aspect_ratio[0] <= patch_w / patch_h <= self.aspect_ratio[1]:
            return None
        left, top = int((width - patch_w) * place_x), int((height - patch_h) * place_y)
        return left, top, left + patch_w, top + patch_h


def centres_inside(boxes: np.ndarray, patch: Sequence[float]) -> np.ndarray:
    """Which of the boxes (N, 4) have their centre inside the patch (x1, y1, x2, y2): (N,) bool."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > patch[:2]) & (centres < patch[2:])).all(axis=1)


def _suits(patch: tuple[int, int, int, int], boxes: np.ndarray, least: float) -> bool:
    """Whether a box with its centre inside has at least this IoU with the patch."""
    boxes = boxes[centres_inside(boxes, patch)]
    if len(boxes) == 0:
        return False
    corner = np.asarray(patch, dtype=np.float64)
    sides = np.minimum(boxes[:, 2:], corner[2:]) - np.maximum(boxes[:, :2], corner[:2])
    intersection = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = areas + (corner[2:] - corner[:2]).prod() - intersection
    return bool((intersection / union).max() >= least)
