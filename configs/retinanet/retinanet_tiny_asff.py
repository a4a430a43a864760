"""Tiny RetinaNet whose pyramid is fused by ASFF."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import ASFF

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

model.backbone = L(ASFF)(backbone=model.backbone, in_features=["p3", "p4", "p5"])
model.head.in_channels = "${..backbone.backbone.out_channels}"
