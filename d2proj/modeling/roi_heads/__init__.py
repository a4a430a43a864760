"""What two-stage detectors do with proposals."""

from d2proj.modeling.roi_heads.box_head import FastRCNNConvFCHead
from d2proj.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from d2proj.modeling.roi_heads.pooler import RoIPooler
from d2proj.modeling.roi_heads.roi_heads import RoIHeads

__all__ = ["FastRCNNConvFCHead", "FastRCNNOutputLayers", "RoIHeads", "RoIPooler"]
