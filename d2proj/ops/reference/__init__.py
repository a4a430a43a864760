"""The compiled ops in plain torch, same file names: oracle for the tests, and documentation."""

from d2proj.ops.reference import cluster_nms, diou_nms, matrix_nms, nms, roi_align, soft_nms

__all__ = ["cluster_nms", "diou_nms", "matrix_nms", "nms", "roi_align", "soft_nms"]
