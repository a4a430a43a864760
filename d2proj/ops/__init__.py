"""The compiled ops (CPU and CUDA), one file each; ``reference`` has the same in plain torch."""

from d2proj.ops.nms import batched_nms, nms, nms_padded
from d2proj.ops.ps_roi_pool import PSRoIAlign, PSRoIPool, ps_roi_align, ps_roi_pool
from d2proj.ops.roi_align import RoIAlign, roi_align
from d2proj.ops.roi_pool import RoIPool, roi_pool
from d2proj.ops.spatial_pyramid_pool import SpatialPyramidPool, spatial_pyramid_pool

__all__ = ["RoIAlign", "roi_align", "batched_nms", "nms", "nms_padded"]
__all__ += ["PSRoIAlign", "PSRoIPool", "ps_roi_align", "ps_roi_pool"]
__all__ += ["RoIPool", "roi_pool", "SpatialPyramidPool", "spatial_pyramid_pool"]
