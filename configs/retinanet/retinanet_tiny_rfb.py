"""Tiny RetinaNet with a receptive field block on every level, the smaller kind on the finest."""

from detectron2.config import LazyCall as L

from d2proj.layers import RFB, RFBs
from d2proj.modeling.necks import LevelBlocks

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

channels = "${...backbone.out_channels}"
model.backbone = L(LevelBlocks)(
    backbone=model.backbone,
    in_features=["p3", "p4", "p5"],
    blocks=[L(block)(in_channels=channels, out_channels=channels) for block in (RFBs, RFB, RFB)],
)
model.head.in_channels = "${..backbone.backbone.out_channels}"
