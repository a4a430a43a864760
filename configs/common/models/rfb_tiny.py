"""RFBNet of a size that trains from scratch on a CPU."""

from detectron2.config import LazyCall as L

from d2proj.layers import RFB, RFBs
from d2proj.modeling.necks import ExtraLayer

from .ssd_tiny import model

model.backbone.adapters = [
    L(RFBs)(in_channels=48, out_channels=96),
    L(RFB)(in_channels=96, out_channels=128),
    L(RFB)(in_channels=192, out_channels=192, visual=2),
]
model.backbone.extra_blocks = [
    L(RFB)(in_channels=192, out_channels=128, stride=2, visual=1),
    L(ExtraLayer)(in_channels=128, mid_channels=64, out_channels=128, norm="BN"),
]
model.head.in_channels = [96, 128, 192, 128, 128]
