"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import (
    box_fusion,
    box_iou,
    box_iou_rotated,
    cluster_nms,
    deform_roi_pool,
    diou_nms,
    iou_loss,
    matrix_nms,
    multilevel_roi_align,
    nms,
    nms_rotated,
    roi_align,
    roi_align_rotated,
    soft_nms,
)

__all__ = [
    "box_fusion",
    "box_iou",
    "box_iou_rotated",
    "cluster_nms",
    "deform_roi_pool",
    "diou_nms",
    "iou_loss",
    "matrix_nms",
    "multilevel_roi_align",
    "nms",
    "nms_rotated",
    "roi_align",
    "roi_align_rotated",
    "soft_nms",
]
