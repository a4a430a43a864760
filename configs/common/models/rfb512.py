"""RFBNet512: SSD512 with receptive field blocks (Liu, Huang & Wang 2018; the authors' code)."""

from detectron2.config import LazyCall as L

from d2proj.layers import RFB, RFBs
from d2proj.modeling.necks import ExtraLayer

from .ssd512 import model

model.backbone.adapters = [
    L(RFBs)(in_channels=512, out_channels=512, scale=1.0),
    L(RFB)(in_channels=1024, out_channels=1024, visual=2, scale=1.0),
]
model.backbone.extra_blocks = [
    L(RFB)(in_channels=1024, out_channels=512, stride=2, visual=2, scale=1.0),
    L(RFB)(in_channels=512, out_channels=256, stride=2, visual=2, scale=1.0),
    L(RFB)(in_channels=256, out_channels=256, stride=2, visual=1, scale=1.0),
    L(RFB)(in_channels=256, out_channels=256, stride=2, visual=1, scale=1.0),
    L(ExtraLayer)(
        in_channels=256,
        mid_channels=128,
        out_channels=256,
        kernel_size=4,
        stride=1,
        padding=1,
        norm="BN",
    ),
]
model.head.num_anchors = [6, 6, 6, 6, 6, 4, 4]
model.anchor_generator.aspect_ratios = [[2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
model.anchor_generator.max_size = 512
