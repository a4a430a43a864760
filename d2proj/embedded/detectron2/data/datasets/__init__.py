"""Data set formats. No data set is registered beforehand."""

from .coco import convert_to_coco_json, load_coco_json, register_coco_instances

__all__ = ["convert_to_coco_json", "load_coco_json", "register_coco_instances"]
