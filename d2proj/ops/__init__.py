"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.cluster_nms import batched_cluster_nms, cluster_nms
from d2proj.ops.diou_nms import batched_diou_nms, diou_nms
from d2proj.ops.matrix_nms import matrix_nms
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.roi_align import RoIAlign, roi_align
from d2proj.ops.soft_nms import batched_soft_nms, soft_nms

__all__ = [
    "RoIAlign",
    "roi_align",
    "batched_nms",
    "nms",
    "nms_padded",
    "batched_cluster_nms",
    "cluster_nms",
    "batched_diou_nms",
    "diou_nms",
    "matrix_nms",
    "batched_soft_nms",
    "soft_nms",
]
