"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.deform_roi_pool import (
    DeformPSRoIPool,
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPool,
    ModulatedDeformRoIPoolPack,
    deform_ps_roi_pool,
    deform_roi_pool,
)
from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.roi_align import RoIAlign, roi_align

__all__ = [
    "RoIAlign",
    "roi_align",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformRoIPool",
    "ModulatedDeformRoIPoolPack",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "batched_nms",
    "nms",
    "nms_padded",
]
