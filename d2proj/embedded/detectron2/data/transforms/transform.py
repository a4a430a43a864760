"""Deterministic transforms beyond fvcore's: resize, extent, rotation, colour."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
)
from PIL import Image

__all__ = [
    "ColorTransform",
    "ExtentTransform",
    "PILColorTransform",
    "ResizeTransform",
    "RotationTransform",
]

# PIL's names of interpolations, as plain numbers.
NEAREST = int(Image.Resampling.NEAREST)
BILINEAR = int(Image.Resampling.BILINEAR)
BICUBIC = int(Image.Resampling.BICUBIC)
_TORCH_MODES = {NEAREST: "nearest", BILINEAR: "bilinear", BICUBIC: "bicubic"}
# OpenCV's numbers for two interpolations; the library itself is loaded only when a rotation runs.
_CV2_NEAREST = 0
_CV2_LINEAR = 1


def _through_pil(image: np.ndarray, op: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply ``op`` to an HW, HW1 or HW3 array as a PIL image; the shape's rank is kept."""
    if image.ndim > 2 and image.shape[2] == 1:
        return np.asarray(op(Image.fromarray(image[:, :, 0])))[:, :, None]
    return np.asarray(op(Image.fromarray(image)))


class ExtentTransform(Transform):
    """Cut the rectangle ``src_rect`` out of the image and scale it to ``output_size``.

    Args:
        src_rect: (x0, y0, x1, y1) in the source; may reach beyond it.
        output_size: (height, width) of the result.
        interp: PIL's interpolation.
        fill: Value of what lies outside the source.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = BILINEAR,
        fill: float = 0,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        height, width = self.output_size
        method = interp if interp is not None else self.interp
        return _through_pil(
            img,
            lambda image: image.transform(
                size=(width, height),
                method=Image.Transform.EXTENT,
                data=self.src_rect,
                resample=method,
                fill=self.fill,
            ),
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        moved = coords.astype(np.float32)
        # About the middle of the rectangle, so that halves cancel exactly.
        moved[:, 0] -= 0.5 * (x0 + x1)
        moved[:, 1] -= 0.5 * (y0 + y1)
        moved[:, 0] *= width / (x1 - x0)
        moved[:, 1] *= height / (y1 - y0)
        moved[:, 0] += 0.5 * width
        moved[:, 1] += 0.5 * height
        return moved

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=NEAREST)


class ResizeTransform(Transform):
    """Resize an image of (h, w) to (new_h, new_w): uint8 through PIL, other types through torch.

    Args:
        h, w: Size of the source.
        new_h, new_w: Size of the result.
        interp: PIL's interpolation; None means bilinear.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        if interp is None:
            interp = BILINEAR
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        assert img.shape[:2] == (self.h, self.w), f"{img.shape[:2]} is not {(self.h, self.w)}"
        assert img.ndim <= 4, f"an image has at most 4 axes, got {img.shape}"
        method = interp if interp is not None else self.interp
        if img.dtype == np.uint8:
            size = (self.new_w, self.new_h)
            return _through_pil(img, lambda image: image.resize(size, method))
        return self._resize_by_torch(img, _TORCH_MODES[method])

    def _resize_by_torch(self, img: np.ndarray, mode: str) -> np.ndarray:
        # ascontiguousarray: torch takes no negative strides, as flipped arrays have.
        planes = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        batch = planes.permute(2, 0, 1)[None]
        resized = F.interpolate(
            batch,
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        out = resized[0].permute(1, 2, 0)
        return out.reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate the image counter-clockwise.

    Args:
        h, w: Size of the source.
        angle: Degrees.
        expand: Make the result large enough for all of the rotated image; else keep the size.
        center: (x, y) about which to rotate, by default the image's centre; without effect when
            expanding.
        interp: OpenCV's interpolation; None means linear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: Sequence[float] | np.ndarray | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        image_center = np.array((w / 2, h / 2))
        if center is None:
            center = image_center
        if interp is None:
            interp = _CV2_LINEAR
        abs_cos, abs_sin = (abs(f(np.deg2rad(angle))) for f in (np.cos, np.sin))
        bound_w, bound_h = w, h
        if expand:
            # The rotated image's bounding box.
            bound_w, bound_h = np.rint(
                [h * abs_sin + w * abs_cos, h * abs_cos + w * abs_sin]
            ).astype(int)
        self._set_attributes(locals())
        self.rm_coords = self.create_rotation_matrix()
        # Pixel (0, 0) has its centre at (0.5, 0.5), where OpenCV puts it at the origin.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """The 2x3 matrix that maps source points to result points.

        Args:
            offset: Added to the centre and the result's centre: -0.5 for pixel indices.
        """
        # OpenCV takes the centre in single precision; so here, that the two agree to the last bit.
        x, y = (float(np.float32(c + offset)) for c in self.center)
        radians = np.deg2rad(self.angle)
        cos, sin = np.cos(radians), np.sin(radians)
        matrix = np.array(
            [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]]
        )
        if self.expand:
            # Wherever the image's centre went, shift it to the middle of the result.
            rotated = matrix[:, :2] @ (self.image_center + offset) + matrix[:, 2]
            middle = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
            matrix[:, 2] += middle - rotated
        return matrix

    def _is_identity(self) -> bool:
        return self.angle % 360 == 0

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if len(img) == 0 or self._is_identity():
            return img
        import cv2  # here, as a rotation is the only transform that needs it

        assert img.shape[:2] == (self.h, self.w), f"{img.shape[:2]} is not {(self.h, self.w)}"
        method = interp if interp is not None else self.interp
        size = (int(self.bound_w), int(self.bound_h))
        return cv2.warpAffine(img, self.rm_image, size, flags=method)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self._is_identity():
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=_CV2_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back, then crop to the size before; only of an expanding rotation."""
        if not self.expand:
            raise NotImplementedError("a rotation that cut corners off has no inverse")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        left, top = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(left, top, self.w, self.h)])


class ColorTransform(Transform):
    """Apply a function of the whole image that moves no pixel.

    Args:
        op: Takes an array and returns one of the same size.
    """

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise ValueError("op parameter should be callable")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        # Colours are not brought back: the inverse is about places.
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A :class:`ColorTransform` whose function takes and returns PIL images."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(self.op(Image.fromarray(img)))


def _flip_rotated_box(transform: HFlipTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Flip float[N, 5] boxes (x, y, width, height, degrees) left to right, in place."""
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def _resize_rotated_box(transform: ResizeTransform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Scale float[N, 5] boxes (x, y, width, height, degrees), in place.

    Unequal scales make a parallelogram of a rotated box; it is taken for the box whose sides are
    as long as the scaled ones and whose angle is that of the scaled height's normal.
    """
    scale_x = transform.new_w / transform.w
    scale_y = transform.new_h / transform.h
    theta = np.deg2rad(rotated_boxes[:, 4])
    cos, sin = np.cos(theta), np.sin(theta)
    rotated_boxes[:, 0] *= scale_x
    rotated_boxes[:, 1] *= scale_y
    rotated_boxes[:, 2] *= np.hypot(scale_x * cos, scale_y * sin)
    rotated_boxes[:, 3] *= np.hypot(scale_x * sin, scale_y * cos)
    rotated_boxes[:, 4] = np.rad2deg(np.arctan2(scale_x * sin, scale_y * cos))
    return rotated_boxes


HFlipTransform.register_type("rotated_box", _flip_rotated_box)
ResizeTransform.register_type("rotated_box", _resize_rotated_box)
NoOpTransform.register_type("rotated_box", lambda transform, boxes: boxes)
