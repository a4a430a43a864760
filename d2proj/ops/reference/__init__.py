"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import (
    box_fusion,
    box_iou_rotated,
    deform_roi_pool,
    multilevel_roi_align,
    nms,
    nms_rotated,
    roi_align,
    roi_align_rotated,
)

__all__ = [
    "box_fusion",
    "box_iou_rotated",
    "deform_roi_pool",
    "multilevel_roi_align",
    "nms",
    "nms_rotated",
    "roi_align",
    "roi_align_rotated",
]
