"""Tiny RetinaNet with CBAM on every level of FPN."""

from detectron2.config import LazyCall as L

from d2proj.layers import CBAM
from d2proj.modeling.necks import LevelBlocks

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

model.backbone = L(LevelBlocks)(
    backbone=model.backbone,
    in_features=["p3", "p4", "p5"],
    blocks=[L(CBAM)(channels="${...backbone.out_channels}", reduction=8) for _ in range(3)],
)
model.head.in_channels = "${..backbone.backbone.out_channels}"
