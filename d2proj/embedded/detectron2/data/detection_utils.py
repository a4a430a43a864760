"""From an image file and its annotations to arrays and :class:`Instances`.

Boxes only: polygons pass through the transforms, but masks and keypoints need the real Detectron2.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "read_image",
    "transform_instance_annotations",
]

# ITU-R BT.601, with Y in [0, 1] and U, V centred at 0: rows are Y, U, V.
_RGB_TO_YUV = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """An image is not of the size that its annotations say."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a PIL image to an array; ``format`` as in :func:`read_image`."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _RGB_TO_YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert an HWC image in ``format`` (see :func:`read_image`) to RGB in [0, 255]."""
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return array[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(array, _YUV_TO_RGB.T) * 255.0
    array = (array[:, :, 0] if format == "L" else array).astype(np.uint8)
    if format == "RGB":
        return np.asarray(Image.fromarray(array))
    if format == "L":
        return np.asarray(Image.fromarray(array).convert("RGB"))
    size = (array.shape[1], array.shape[0])
    return np.asarray(Image.frombytes(format, size, array.tobytes()).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, upright as its EXIF orientation says.

    Args:
        file_name: Path, anything that iopath's path manager opens.
        format: A PIL mode such as "RGB" or "L", or "BGR", or "YUV-BT.601"; None leaves the file's.

    Returns:
        HWC array (HW for a one-channel mode other than "L"): uint8 in [0, 255]; float64 for
        "YUV-BT.601", with Y in [0, 1].
    """
    with PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        return convert_PIL_to_numpy(ImageOps.exif_transpose(image), format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare an HWC image with the dict's ``width`` and ``height``, which are filled in if absent.

    Raises:
        SizeMismatchError: they differ.
    """
    width, height = image.shape[1], image.shape[0]
    if "width" in dataset_dict or "height" in dataset_dict:
        expected = (dataset_dict["width"], dataset_dict["height"])
        if (width, height) != expected:
            name = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
            raise SizeMismatchError(
                f"Mismatched image shape{name}, got {(width, height)}, expect {expected}. "
                "Please check the width/height in your annotation."
            )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
) -> dict:
    """Transform one instance's box (and polygons), in place.

    Args:
        annotation: With ``bbox`` and ``bbox_mode``; ``segmentation``, if any, as polygons.
        transforms: What was done to the image.
        image_size: (height, width) of the transformed image, to which the box is clipped.

    Returns:
        ``annotation``, its box now XYXY_ABS.

    Raises:
        ValueError: it holds an RLE mask or keypoints, which need the real Detectron2.
    """
    tfm = T.TransformList(list(transforms)) if isinstance(transforms, Sequence) else transforms
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = tfm.apply_box(np.array([box]))[0].clip(min=0)
    height, width = image_size
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "keypoints" in annotation:
        raise ValueError("keypoints are not supported by the embedded Detectron2")
    if "segmentation" in annotation:
        polygons = annotation["segmentation"]
        if not isinstance(polygons, list):
            raise ValueError("masks that are not polygons need the real Detectron2")
        points = [np.asarray(p).reshape(-1, 2) for p in polygons]
        annotation["segmentation"] = [p.reshape(-1) for p in tfm.apply_polygons(points)]
    return annotation


def annotations_to_instances(annos: Sequence[dict], image_size: tuple[int, int]) -> Instances:
    """Collect annotations into :class:`Instances`.

    Args:
        annos: Each with ``bbox``, ``bbox_mode`` and ``category_id``.
        image_size: (height, width).

    Returns:
        With ``gt_boxes`` (:class:`Boxes`) and ``gt_classes`` (int64), of N = len(annos).
    """
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor(
        [int(a.get("category_id", 0)) for a in annos], dtype=torch.int64
    )
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Leave out instances whose box (or mask, where there are masks) is empty.

    Args:
        instances: With ``gt_boxes`` and perhaps ``gt_masks``.
        by_box: Leave out by the box.
        by_mask: Leave out by the mask.
        box_threshold: A side not longer than this is empty, in pixels.
        return_mask: Also return which were kept, bool[N].
    """
    assert by_box or by_mask, "nothing to filter by"
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep = keep & instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """Draw a crop of ``crop_size`` that contains the centre of the instance's box.

    Args:
        crop_size: (height, width), at most the image's.
        image_size: (height, width).
        instance: An annotation.
    """
    crop = np.asarray(crop_size, dtype=np.int32)
    x0, y0, x1, y1 = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    centre = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (centre <= image_size).all(), "the annotation's centre is outside of the image"
    assert (crop <= image_size).all(), f"the crop {crop_size} is larger than the image {image_size}"
    lowest = np.maximum(np.floor(centre).astype(np.int32) - crop, 0)
    highest = np.minimum(
        np.maximum(np.asarray(image_size, dtype=np.int32) - crop, 0),
        np.ceil(centre).astype(np.int32),
    )
    top = np.random.randint(lowest[0], highest[0] + 1)
    left = np.random.randint(lowest[1], highest[1] + 1)
    return T.CropTransform(left, top, crop[1], crop[0])


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Insist that data sets agree in one item of their metadata.

    Raises:
        AttributeError: one of them does not have it.
        ValueError: they differ; each that does is logged.
    """
    values = {name: getattr(MetadataCatalog.get(name), key) for name in dataset_names}
    first_name = dataset_names[0]
    differing = [name for name in dataset_names if values[name] != values[first_name]]
    if not differing:
        return
    logger = logging.getLogger(__name__)
    for name in (*differing, first_name):
        logger.error(f"Metadata '{key}' for dataset '{name}' is '{values[name]}'")
    raise ValueError(f"Datasets have different metadata '{key}'!")
