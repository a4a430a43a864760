"""Tiny RetinaNet with PANet's bottom-up path after FPN."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import PAN

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

model.backbone = L(PAN)(backbone=model.backbone, in_features=["p3", "p4", "p5"], norm="BN")
model.head.in_channels = "${..backbone.backbone.out_channels}"
