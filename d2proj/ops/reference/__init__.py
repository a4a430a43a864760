"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import nms, ps_roi_pool, roi_align, roi_pool, spatial_pyramid_pool

__all__ = ["nms", "ps_roi_pool", "roi_align", "roi_pool", "spatial_pyramid_pool"]
