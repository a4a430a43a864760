"""COCO's json of images and annotations: reading, writing, registering."""

import contextlib
import datetime
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock

from detectron2.structures import Boxes, BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "register_coco_instances",
]

_logger = logging.getLogger(__name__)

_SLOW_SECONDS = 1
_COCO_KEYPOINT_OFFSET = 0.5  # COCO counts keypoints in pixel indices, Detectron2 in coordinates


def load_coco_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict]:
    """Load a COCO json as dataset dicts; the images are not read.

    Args:
        json_file: The json.
        image_root: Folder that the images' names in the json are relative to.
        dataset_name: If given, class names and the map from the json's category ids to 0, 1, 2...
            go into this data set's metadata and the ids of the annotations are mapped.
        extra_annotation_keys: Further keys of the annotations to keep as they are.
    """
    from pycocotools.coco import COCO

    timer = Timer()
    json_file = os.fspath(json_file)
    local_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(local_file)
    if timer.seconds() > _SLOW_SECONDS:
        _logger.info(f"Loading {json_file} takes {timer.seconds():.2f} seconds.")

    id_map = None
    if dataset_name is not None:
        id_map = _record_categories(coco, dataset_name)
    image_ids = sorted(coco.imgs)
    _logger.info(f"Loaded {len(image_ids)} images in COCO format from {json_file}")
    if "minival" not in json_file:  # Detectron's own minival has repeated ids
        annotation_ids = [a["id"] for i in image_ids for a in coco.imgToAnns[i]]
        assert len(set(annotation_ids)) == len(annotation_ids), (
            f"Annotation ids in '{json_file}' are not unique!"
        )
    keys = ("iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or ()))
    dataset_dicts = []
    without_segmentation = 0
    for image_id in image_ids:
        image = coco.imgs[image_id]
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
        }
        annotations = []
        for annotation in coco.imgToAnns[image_id]:
            assert annotation["image_id"] == image_id
            assert annotation.get("ignore", 0) == 0, '"ignore" in COCO json file is not supported.'
            instance = _load_annotation(annotation, keys)
            if instance is None:
                without_segmentation += 1
                continue
            if id_map is not None:
                instance["category_id"] = _contiguous_id(instance["category_id"], id_map)
            annotations.append(instance)
        record["annotations"] = annotations
        dataset_dicts.append(record)
    if without_segmentation:
        _logger.warning(
            f"Filtered out {without_segmentation} instances without valid segmentation. There "
            "might be issues in your dataset generation process."
        )
    return dataset_dicts


def _record_categories(coco: Any, dataset_name: str) -> dict[int, int]:
    """Put the json's classes, ordered by id, into the metadata; returns json id → 0, 1, 2..."""
    categories = sorted(coco.loadCats(coco.getCatIds()), key=lambda c: c["id"])
    ids = sorted(coco.getCatIds())
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [c["name"] for c in categories]
    if ids and not (ids[0] == 1 and ids[-1] == len(ids)) and "coco" not in dataset_name:
        _logger.warning(
            "Category ids in annotations are not in [1, #categories]! We'll apply a mapping for "
            "you."
        )
    id_map = {category: index for index, category in enumerate(ids)}
    metadata.thing_dataset_id_to_contiguous_id = id_map
    return id_map


def _contiguous_id(category_id: int, id_map: dict[int, int]) -> int:
    if category_id not in id_map:
        raise KeyError(
            f"Encountered category_id={category_id} but this id does not exist in 'categories' of "
            "the json file."
        )
    return id_map[category_id]


def _load_annotation(annotation: dict, keys: Sequence[str]) -> dict | None:
    """One annotation as Detectron2 has it, or None if its polygons are not polygons."""
    instance = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in instance and len(instance["bbox"]) == 0:
        raise ValueError(
            f"One annotation of image {annotation['image_id']} contains empty 'bbox' value! This "
            "json does not have valid COCO format."
        )
    segmentation = annotation.get("segmentation")
    if segmentation:
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        else:
            # A polygon is at least three points.
            segmentation = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
            if not segmentation:
                return None
        instance["segmentation"] = segmentation
    keypoints = instance.get("keypoints")
    if keypoints:
        instance["keypoints"] = [
            value if position % 3 == 2 else value + _COCO_KEYPOINT_OFFSET
            for position, value in enumerate(keypoints)
        ]
    instance["bbox_mode"] = BoxMode.XYWH_ABS
    return instance


def convert_to_coco_dict(dataset_name: str) -> dict:
    """Make COCO's json structure of a registered data set.

    Args:
        dataset_name: Name in the catalogue; its metadata must have ``thing_classes``.

    Returns:
        dict of info, images, categories, licenses and, if there are any, annotations. Category ids
        are those of the data set's original json where its metadata know them.
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id")
    original_id = {v: k for k, v in id_map.items()} if id_map is not None else None
    categories = [
        {"id": original_id[index] if original_id is not None else index, "name": name}
        for index, name in enumerate(metadata.thing_classes)
    ]
    _logger.info("Converting dataset dicts into COCO format")
    images: list[dict] = []
    annotations: list[dict] = []
    for position, entry in enumerate(dataset_dicts):
        image = {
            "id": entry.get("image_id", position),
            "width": int(entry["width"]),
            "height": int(entry["height"]),
            "file_name": str(entry["file_name"]),
        }
        images.append(image)
        for annotation in entry.get("annotations", []):
            converted = _annotation_to_coco(annotation)
            category = annotation["category_id"]
            converted["id"] = len(annotations) + 1  # pycocotools takes 0 for "no match"
            converted["image_id"] = image["id"]
            converted["category_id"] = int(original_id[category] if original_id else category)
            annotations.append(converted)
    _logger.info(f"Conversion finished, #images: {len(images)}, #annotations: {len(annotations)}")
    coco = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "Automatically generated COCO json file for Detectron2.",
        },
        "images": images,
        "categories": categories,
        "licenses": None,
    }
    if annotations:
        coco["annotations"] = annotations
    return coco


def _annotation_to_coco(annotation: dict) -> dict:
    """Box, area, crowd flag and, where present, mask and keypoints of one annotation."""
    box = annotation["bbox"]
    box = box.tolist() if isinstance(box, np.ndarray) else box
    assert len(box) in (4, 5), f"bbox has to have 4 or 5 numbers, got {len(box)}"
    from_mode = annotation["bbox_mode"]
    rotated = from_mode == BoxMode.XYWHA_ABS
    if not rotated:
        box = BoxMode.convert(box, from_mode, BoxMode.XYWH_ABS)
    converted: dict[str, Any] = {}
    segmentation = annotation.get("segmentation")
    if segmentation:
        converted["segmentation"] = _segmentation_to_json(segmentation)
        area = _segmentation_area(segmentation)
    elif rotated:
        area = float(box[2] * box[3])
    else:
        corners = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        area = Boxes([corners]).area()[0].item()
    keypoints = annotation.get("keypoints")
    if keypoints:
        shifted = [
            value if position % 3 == 2 else value - _COCO_KEYPOINT_OFFSET
            for position, value in enumerate(keypoints)
        ]
        converted["keypoints"] = shifted
        converted["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])
    converted["bbox"] = [round(float(value), 3) for value in box]
    converted["area"] = float(area)
    converted["iscrowd"] = int(annotation.get("iscrowd", 0))
    return converted


def _segmentation_area(segmentation: list | dict) -> float:
    if isinstance(segmentation, dict):
        return float(mask_util.area(segmentation))
    area = 0.0
    for polygon in segmentation:
        x, y = np.asarray(polygon, dtype=float).reshape(-1, 2).T
        # The shoelace formula.
        area += 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    return area


def _segmentation_to_json(segmentation: list | dict) -> list | dict:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        return {**segmentation, "counts": counts}
    return [np.asarray(polygon).tolist() for polygon in segmentation]


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as COCO json.

    Args:
        dataset_name: Name in the catalogue.
        output_file: Where to.
        allow_cached: Leave a file that is already there.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    # All processes of a training ask for the same file.
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            _logger.warning(
                f"Using previously cached COCO format annotations at '{output_file}'. "
                "You need to clear the cache file if your dataset has been modified."
            )
            return
        _logger.info(f"Converting annotations of dataset '{dataset_name}' to COCO format ...)")
        coco = convert_to_coco_dict(dataset_name)
        _logger.info(f"Caching COCO format annotations at '{output_file}' ...")
        partial = output_file + ".tmp"
        with PathManager.open(partial, "w") as file:
            json.dump(coco, file)
        shutil.move(partial, output_file)


def register_coco_instances(
    name: str, metadata: dict, json_file: str, image_root: str | os.PathLike
) -> None:
    """Register a COCO json under ``name``; it is read on first use.

    Args:
        name: Name for the catalogue.
        metadata: Further metadata, may be empty.
        json_file: The json.
        image_root: Folder of the images.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, str | os.PathLike), json_file
    assert isinstance(image_root, str | os.PathLike), image_root
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )
