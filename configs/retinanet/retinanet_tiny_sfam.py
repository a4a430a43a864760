"""Tiny RetinaNet with M2Det's neck: three U-shaped pyramids, joined by SFAM."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import MLFPN

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

model.backbone = L(MLFPN)(
    bottom_up=model.backbone.bottom_up,
    in_features=["res3", "res4"],
    out_levels=["p3", "p4", "p5"],
    out_channels=72,
    num_pyramids=3,
    base_channels=[32, 64],
)
