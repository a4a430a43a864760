"""From a Detectron2 dataset dict to what a model is given: read, augment, convert."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from d2proj.data.bad_image import UNREADABLE, BadImageError, explain


class DetectionMapper:
    """Reads the image of a dataset dict and applies augmentations to it and to its boxes.

    It differs from Detectron2's DatasetMapper in giving the augmentations the boxes (those that
    crop around objects need them), in leaving out masks and key points, and in naming the file
    when something goes wrong. Multi-image augmentations compose ``read`` of several dicts.

    Args:
        augmentations: Detectron2's Augmentations or fixed Transforms, applied in order.
        image_format: a mode of Pillow's or "BGR"; the order of the channels that the model takes.
        training: whether to give ``instances``.
    """

    def __init__(
        self, augmentations: Sequence[Any], *, image_format: str = "BGR", training: bool
    ) -> None:
        self._augmentations = T.AugmentationList(list(augmentations))
        self._image_format = image_format
        self._training = training

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Returns:
            ``file_name``, ``image_id``, ``height`` and ``width`` of the file, ``image`` (uint8
            tensor [C, H, W] after augmentation) and, when training, ``instances`` with
            ``gt_boxes`` and ``gt_classes`` of the boxes that are left; crowd boxes never are. If an
            annotation has no ``bbox`` (a label of the image), its box is the whole image and
            ``gt_has_box`` says so.

        Raises:
            BadImageError: the image cannot be read or is not of the announced size.
        """
        image = self.read(record)
        output = {key: value for key, value in record.items() if key != "annotations"}
        output["height"], output["width"] = record.get("height"), record.get("width")
        if output["height"] is None or output["width"] is None:
            output["height"], output["width"] = image.shape[:2]

        boxes, classes = training_boxes(record) if self._training else (None, None)
        labels = image_labels(record) if self._training else []
        augmented = T.AugInput(image, boxes=boxes)
        try:
            self._augmentations(augmented)
        except Exception as error:
            raise RuntimeError(
                f"an augmentation failed on {record['file_name']}: {error}"
            ) from error
        output["image"] = _as_tensor(augmented.image)
        if classes is not None:
            size = augmented.image.shape[:2]
            instances = _instances(augmented.boxes, classes, size)
            output["instances"] = _with_labels(instances, labels) if labels else instances
        return output

    def read(self, record: dict[str, Any]) -> np.ndarray:
        """The image of a dataset dict, uint8 [H, W, C], turned as its EXIF data say.

        Raises:
            BadImageError: it cannot be read or is not of the announced size.
        """
        path = record["file_name"]
        try:
            image = detection_utils.read_image(path, format=self._image_format)
        except UNREADABLE as error:
            raise BadImageError(path, explain(error)) from error
        height, width = image.shape[:2]
        expected = (record.get("width", width), record.get("height", height))
        if (width, height) != expected:
            raise BadImageError(
                path,
                f"it is {width} x {height} pixels where its annotation says "
                f"{expected[0]} x {expected[1]}",
            )
        # Pillow's memory is read-only, which torch, used by some transforms, warns of.
        return image if image.flags.writeable else image.copy()


def training_boxes(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (float64 [n, 4], x1 y1 x2 y2) and classes (int64 [n]) to train on."""
    wanted = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0) and "bbox" in a]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in wanted]
    classes = [a["category_id"] for a in wanted]
    return (
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        np.asarray(classes, dtype=np.int64),
    )


def image_labels(record: dict[str, Any]) -> list[int]:
    """The classes that the image is known to show, it is not known where."""
    return [a["category_id"] for a in record.get("annotations", ()) if "bbox" not in a]


def _with_labels(instances: Instances, labels: list[int]) -> Instances:
    """Further instances, each the whole image, and ``gt_has_box``, which tells them apart."""
    height, width = instances.image_size
    whole = torch.tensor([[0.0, 0.0, width, height]]).expand(len(labels), -1)
    joined = Instances(instances.image_size)
    joined.gt_boxes = Boxes(torch.cat([instances.gt_boxes.tensor, whole]))
    joined.gt_classes = torch.cat([instances.gt_classes, torch.tensor(labels)])
    joined.gt_has_box = torch.arange(len(joined)) < len(instances)
    return joined


def _instances(boxes: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> Instances:
    """Boxes cut to the image (height, width), without those that the augmentations cut away."""
    height, width = size
    boxes = np.clip(boxes.reshape(-1, 4), 0, [width, height, width, height])
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)))
    instances.gt_classes = torch.from_numpy(classes)
    return instances[instances.gt_boxes.nonempty(threshold=1e-5)]


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    if image.ndim == 2:
        image = image[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
