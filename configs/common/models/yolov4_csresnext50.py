"""CSPResNeXt50-PANet-SPP: YOLOv4's neck and head on another backbone."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import CSPResNeXt50

from .yolov4 import model

model.backbone.bottom_up = L(CSPResNeXt50)(norm="BN", activation="leaky")
model.backbone.top_block.in_channels = 2048
for loss in model.level_losses:
    loss.box_loss.max_delta = float("inf")
