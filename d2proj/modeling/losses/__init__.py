"""Losses of detectors."""

from d2proj.modeling.losses.box import BoxLoss, GIoUBoxLoss, SmoothL1BoxLoss
from d2proj.modeling.losses.focal import FocalLoss

__all__ = ["BoxLoss", "FocalLoss", "GIoUBoxLoss", "SmoothL1BoxLoss"]
