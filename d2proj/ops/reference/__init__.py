"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import box_iou, iou_loss, nms, roi_align

__all__ = ["box_iou", "iou_loss", "nms", "roi_align"]
