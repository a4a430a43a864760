"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import box_fusion, box_iou_rotated, nms, nms_rotated, roi_align

__all__ = ["box_fusion", "box_iou_rotated", "nms", "nms_rotated", "roi_align"]
