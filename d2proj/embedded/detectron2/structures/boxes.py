"""Boxes, the ways to write them as numbers, and the measures between them."""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]

BoxLike = TypeVar("BoxLike", list[float], tuple[float, ...], np.ndarray, torch.Tensor)


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are meant; an int, so that json can hold it.

    ``XYXY_ABS``: left, top, right, bottom in pixels. ``XYWH_ABS``: left, top, width, height in
    pixels (COCO). ``XYXY_REL``, ``XYWH_REL``: the same in fractions of the image; named for data
    that holds them, not convertible. ``XYWHA_ABS``: centre, width, height in pixels, and degrees
    counter-clockwise.
    """

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: BoxLike, from_mode: "BoxMode", to_mode: "BoxMode") -> BoxLike:
        """Write boxes in another mode.

        Args:
            box: one box as list or tuple, or an array or tensor of shape (N, k), where k is 4, or
                5 in mode ``XYWHA_ABS``.
            from_mode: mode of ``box``.
            to_mode: the mode wanted; a rotated box becomes the smallest upright box around it.

        Returns:
            The same type and dtype; the input itself if the modes are equal, else a copy. Lists
            of floats pass through float32.

        Raises:
            AssertionError: wrong number of values per box, or a relative mode.
            NotImplementedError: no conversion is defined between the two modes.
        """
        if from_mode == to_mode:
            return box
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert not {from_mode, to_mode}.intersection(relative), (
            "boxes in fractions of the image cannot be converted: the image's size is not known"
        )
        if (from_mode, to_mode) not in _CONVERSIONS:
            raise NotImplementedError(
                f"no conversion from box mode {from_mode!r} to {to_mode!r} is defined"
            )
        values = _as_rows(box)
        length = 5 if from_mode == BoxMode.XYWHA_ABS else 4
        assert values.shape[-1] == length, (
            f"a box in mode {from_mode!r} has {length} values, got shape {tuple(values.shape)}"
        )
        converted = _CONVERSIONS[from_mode, to_mode](values)
        if isinstance(box, np.ndarray):
            return converted.numpy()
        if isinstance(box, list | tuple):
            return type(box)(converted[0].tolist())
        return converted


def _as_rows(box: BoxLike) -> torch.Tensor:
    if isinstance(box, list | tuple):
        assert len(box) in (4, 5), (
            f"a box given as {type(box).__name__} has 4 or 5 values, got {len(box)}"
        )
        return torch.tensor(box)[None]
    return torch.from_numpy(box) if isinstance(box, np.ndarray) else box


def _xyxy_to_xywh(box: torch.Tensor) -> torch.Tensor:
    return torch.cat([box[..., :2], box[..., 2:] - box[..., :2]], dim=-1)


def _xywh_to_xyxy(box: torch.Tensor) -> torch.Tensor:
    return torch.cat([box[..., :2], box[..., :2] + box[..., 2:]], dim=-1)


def _xywh_to_xywha(box: torch.Tensor) -> torch.Tensor:
    # Halves are added in floating point and cast back, which truncates for integers.
    center = (box[..., :2] + box[..., 2:] * 0.5).to(box.dtype)
    return torch.cat([center, box[..., 2:], torch.zeros_like(box[..., :1])], dim=-1)


def _xywha_to_xyxy(box: torch.Tensor) -> torch.Tensor:
    # Double precision inside: upright boxes must come out exact, and sin(90 degrees) is not.
    center, size, angle = box.double().split([2, 2, 1], dim=-1)
    cos, sin = angle.deg2rad().cos().abs(), angle.deg2rad().sin().abs()
    half = (cos * size + sin * size.flip(-1)) / 2
    return torch.cat([center - half, center + half], dim=-1).to(box.dtype)


_CONVERSIONS = {
    (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): _xyxy_to_xywh,
    (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): _xywh_to_xyxy,
    (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS): _xywh_to_xywha,
    (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS): _xywha_to_xyxy,
}


class Boxes:
    """N boxes as one float32 matrix ``tensor`` of rows (x1, y1, x2, y2) in pixels.

    Behaves like a tensor: indexing, ``len``, iteration over rows, ``to``, ``device``.
    """

    def __init__(self, tensor: Any) -> None:
        """Wrap a matrix.

        Args:
            tensor: (N, 4), a tensor or anything that becomes one; anything empty is (0, 4). A
                float32 tensor is not copied.

        Raises:
            AssertionError: another shape.
        """
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)  # keeps the device and the graph
        assert tuple(tensor.shape[1:]) == (4,), (
            f"Boxes take a matrix of shape (N, 4), got {tuple(tensor.shape)}"
        )
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """A copy with its own memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        """The boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        """Where the boxes are."""
        return self.tensor.device

    def area(self) -> torch.Tensor:
        """Width times height, (N,), in square pixels."""
        width, height = self._sizes().unbind(dim=1)
        return width * height

    def _sizes(self) -> torch.Tensor:
        return self.tensor[:, 2:] - self.tensor[:, :2]

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit the boxes of this object to an image; the tensor given to it stays as it was.

        Args:
            box_size: (height, width) of the image.

        Raises:
            AssertionError: there are NaN or infinite coordinates.
        """
        assert torch.isfinite(self.tensor).all(), "boxes to clip contain NaN or infinite values"
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(dim=1)
        clipped = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
        self.tensor = torch.stack(clipped, dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Which boxes have both sides longer than ``threshold`` pixels: bool, (N,)."""
        return (self._sizes() > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Which boxes lie in an image: bool, (N,).

        Args:
            box_size: (height, width) of the image.
            boundary_threshold: how many pixels a box may reach out.
        """
        height, width = box_size
        x1, y1, x2, y2 = self.tensor.unbind(dim=1)
        after_start = (x1 >= -boundary_threshold) & (y1 >= -boundary_threshold)
        before_end = (x2 < width + boundary_threshold) & (y2 < height + boundary_threshold)
        return after_start & before_end

    def get_centers(self) -> torch.Tensor:
        """Centres (x, y), (N, 2)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x and y coordinates in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """All boxes of a list, in order; of an empty list, no boxes."""
        assert isinstance(boxes_list, list | tuple), f"expected a list, got {type(boxes_list)}"
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list), "expected Boxes only"
        if not boxes_list:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    def __getitem__(self, item: Any) -> "Boxes":
        """Boxes selected by an int, a slice, a bool mask or integer indices."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].reshape(1, -1))
        selected = self.tensor[item]
        assert selected.dim() == 2, f"indexing Boxes with {item} does not give a matrix"
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Area shared by each of N boxes with each of M: (N, M), in square pixels."""
    a, b = boxes1.tensor[:, None], boxes2.tensor  # (N, 1, 4), (M, 4)
    sides = torch.min(a[..., 2:], b[:, 2:]) - torch.max(a[..., :2], b[:, :2])  # (N, M, 2)
    return sides.clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersection over union of each of N boxes with each of M: (N, M), 0 where disjoint."""
    shared = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - shared
    return _ratio(shared, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersection over the area of the second box, for each of N boxes with each of M: (N, M)."""
    shared = pairwise_intersection(boxes1, boxes2)
    return _ratio(shared, boxes2.area())


def _ratio(shared: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``shared / whole``, and 0 rather than NaN for two boxes of no area."""
    return torch.where(shared > 0, shared / whole, shared.new_zeros(()))


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Intersection over union of the i-th box with the i-th: (N,); NaN for two boxes of no area.

    Raises:
        AssertionError: the numbers of boxes differ.
    """
    assert len(boxes1) == len(boxes2), (
        f"expected as many boxes on both sides, got {len(boxes1)} and {len(boxes2)}"
    )
    a, b = boxes1.tensor, boxes2.tensor
    sides = torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    return shared / (boxes1.area() + boxes2.area() - shared)


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Distances of each of N points to the sides of each of M boxes.

    Args:
        points: (N, 2), x and y.
        boxes: M boxes.

    Returns:
        (N, M, 4): to the left, top, right and bottom side; all positive for a point inside.
    """
    at = points[:, None]  # (N, 1, 2)
    corners = boxes.tensor  # (M, 4)
    return torch.cat([at - corners[:, :2], corners[:, 2:] - at], dim=2)
