"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import deform_roi_pool, nms, roi_align

__all__ = ["deform_roi_pool", "nms", "roi_align"]
from d2proj.ops.reference import multilevel_roi_align, nms, roi_align, roi_align_rotated

__all__ = ["multilevel_roi_align", "nms", "roi_align", "roi_align_rotated"]
