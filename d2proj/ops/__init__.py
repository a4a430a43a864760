"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.corner_pool import (
    BottomPool,
    CornerPool,
    LeftPool,
    RightPool,
    TopPool,
    corner_pool,
    corner_pool_pair,
)
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.roi_align import RoIAlign, roi_align
from d2proj.ops.sigmoid_focal_loss import sigmoid_focal_loss

__all__ = [
    "BottomPool",
    "CornerPool",
    "LeftPool",
    "RightPool",
    "TopPool",
    "corner_pool",
    "corner_pool_pair",
    "RoIAlign",
    "roi_align",
    "batched_nms",
    "nms",
    "nms_padded",
    "sigmoid_focal_loss",
]
