"""Losses of detectors."""

from d2proj.modeling.losses.box import BoxLoss, GIoUBoxLoss, SmoothL1BoxLoss
from d2proj.modeling.losses.focal import FocalLoss
from d2proj.modeling.losses.label_smoothing import smooth_labels
from d2proj.modeling.losses.multibox import HardNegativeSoftmaxLoss

__all__ = [
    "BoxLoss",
    "FocalLoss",
    "GIoUBoxLoss",
    "HardNegativeSoftmaxLoss",
    "SmoothL1BoxLoss",
    "smooth_labels",
]
