"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.box_fusion import non_maximum_weighted, weighted_boxes_fusion
from d2proj.ops.box_iou_rotated import box_iou_rotated
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.nms_rotated import batched_nms_rotated, nms_rotated
from d2proj.ops.roi_align import RoIAlign, roi_align

__all__ = [
    "RoIAlign",
    "roi_align",
    "batched_nms",
    "nms",
    "nms_padded",
    "batched_nms_rotated",
    "box_iou_rotated",
    "nms_rotated",
    "non_maximum_weighted",
    "weighted_boxes_fusion",
]
