"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import corner_pool, nms, roi_align, sigmoid_focal_loss

__all__ = ["corner_pool", "nms", "roi_align", "sigmoid_focal_loss"]
