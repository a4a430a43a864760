"""Anchors for a data set: k-means over the shapes of its boxes (``python -m d2proj.anchors``)."""

from d2proj.anchors.kmeans import AnchorFit, best_iou, fit_anchors

__all__ = ["AnchorFit", "best_iou", "fit_anchors"]
