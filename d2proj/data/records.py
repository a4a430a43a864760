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
        widths: int32[N], pixels; the image as read (after EXIF rotation). 0: not known before.
        heights: int32[N], pixels.
        first_box: int64[N + 1].
        boxes: float64[M, 4], x1 y1 x2 y2 in pixels, inside the image, of positive area.
        classes: int32[M], contiguous from 0.
        crowd: bool[M]; ignored in evaluation and not trained on.
        areas: float64[M] for COCO's size ranges where the data set gives them (area of the mask).
        has_box: bool[M], false for a mere label of the image, whose box is 0, 0, 0, 0; None where
            there are none.
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
    has_box: npt.NDArray[np.bool_] | None = None

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
        columns = (self.boxes, self.classes, self.crowd, ~self.labels(rows))
        record = {"file_name": self.file_names[index], "image_id": int(self.image_ids[index])}
        if self.widths[index]:
            record |= {"height": int(self.heights[index]), "width": int(self.widths[index])}
        annotations: list[dict[str, Any]] = []
        values = (column[rows].tolist() for column in columns[:3])
        for box, category, crowd, has_box in zip(*values, columns[3].tolist(), strict=True):
            place = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS} if has_box else {}
            annotations.append({**place, "category_id": category, "iscrowd": int(crowd)})
        return {**record, "annotations": annotations}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def image_of_box(self) -> npt.NDArray[np.int64]:
        """int64[M]: the index of the image that each box belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_box))

    def labels(self, rows: slice = slice(None)) -> npt.NDArray[np.bool_]:
        """Which of these boxes (bool[M] for all) are mere labels of the image."""
        if self.has_box is None:
            return np.zeros(len(self.crowd[rows]), dtype=np.bool_)
        return ~self.has_box[rows]

    def labelled_images(self) -> npt.NDArray[np.bool_]:
        """bool[N]: the images that have a label without a box."""
        labelled = np.zeros(len(self), dtype=np.bool_)
        labelled[self.image_of_box()[self.labels()]] = True
        return labelled

    def boxes_per_image(self, *, crowd: bool) -> npt.NDArray[np.int64]:
        """int64[N]: how many boxes each image has, with or without its crowd boxes."""
        counted = ~self.labels() & (crowd | ~self.crowd)
        return np.bincount(self.image_of_box()[counted], minlength=len(self))

    def with_labels(
        self, file_names: Sequence[str], labels: npt.NDArray[np.int32]
    ) -> "DetectionRecords":
        """These images and further ones, each of one label, no box and unknown size.

        Args:
            file_names: their L paths.
            labels: int32[L], the class of each.
        """
        count = len(labels)
        first_id = int(self.image_ids.max(initial=0)) + 1
        one_each = self.first_box[-1] + np.arange(1, count + 1)
        unknown = np.zeros(count, dtype=np.int32)
        return DetectionRecords(
            file_names=StringColumn([*self.file_names, *file_names]),
            image_ids=np.concatenate([self.image_ids, np.arange(first_id, first_id + count)]),
            widths=np.concatenate([self.widths, unknown]),
            heights=np.concatenate([self.heights, unknown]),
            first_box=np.concatenate([self.first_box, one_each]),
            boxes=np.concatenate([self.boxes, np.zeros((count, 4))]),
            classes=np.concatenate([self.classes, labels]),
            crowd=np.concatenate([self.crowd, np.zeros(count, dtype=np.bool_)]),
            areas=None if self.areas is None else np.concatenate([self.areas, np.zeros(count)]),
            has_box=np.concatenate([~self.labels(), np.zeros(count, dtype=np.bool_)]),
        )
