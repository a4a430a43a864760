"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import deform_conv2d, nms, roi_align

__all__ = ["deform_conv2d", "nms", "roi_align"]
