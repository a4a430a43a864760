"""A detection data set as columns: small, shared between worker processes, read as dicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode


class StringColumn(Sequence[str]):
    """Immutable strings in two numpy arrays.

    A list of Python strings cannot be shared by forked workers: reading one changes its reference
    count and so copies its page into every worker.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._ends = np.cumsum([len(entry) for entry in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionRecords(Sequence[dict[str, Any]]):
    """The images and boxes of a data set; element i is a Detectron2 dataset dict, made on access.

    N images, M boxes sorted by image; the boxes of image i are ``first_box[i]:first_box[i + 1]``.
    One box takes 37 bytes here and about 500 as a Python dict.

    Attributes:
        file_names: N paths of image files.
        image_ids: int64[N].
        widths: int32[N], pixels; the image as read (after EXIF rotation).
        heights: int32[N], pixels.
        first_box: int64[N + 1].
        boxes: float64[M, 4], x1 y1 x2 y2 in pixels, inside the image, of positive area.
        classes: int32[M], contiguous from 0.
        crowd: bool[M]; ignored in evaluation and not trained on.
        areas: float64[M] for COCO's size ranges where the data set gives them (area of the mask).
    """

    file_names: StringColumn
    image_ids: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    first_box: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int32]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        rows = slice(int(self.first_box[index]), int(self.first_box[index + 1]))
        columns = (self.boxes[rows], self.classes[rows], self.crowd[rows])
        return {
            "file_name": self.file_names[index],
            "image_id": int(self.image_ids[index]),
            "height": int(self.heights[index]),
            "width": int(self.widths[index]),
            "annotations": [
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": category,
                    "iscrowd": int(crowd),
                }
                for box, category, crowd in zip(*(c.tolist() for c in columns), strict=True)
            ],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def image_of_box(self) -> npt.NDArray[np.int64]:
        """int64[M]: the index of the image that each box belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_box))

    def boxes_per_image(self, *, crowd: bool) -> npt.NDArray[np.int64]:
        """int64[N]: how many boxes each image has, with or without its crowd boxes."""
        if crowd:
            return np.diff(self.first_box)
        return np.bincount(self.image_of_box()[~self.crowd], minlength=len(self))
