"""The compiled ops (CPU and CUDA). One file per op; ``reference`` holds the same ops in plain torch."""

from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.roi_align import RoIAlign, roi_align

__all__ = ["RoIAlign", "roi_align", "batched_nms", "nms", "nms_padded"]
