"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import nms, roi_align

__all__ = ["nms", "roi_align"]
