"""YOLOv2-tiny: no passthrough."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import Darknet, darknet_tiny_stages

from .yolov2 import model

model.backbone = L(Darknet)(stages=L(darknet_tiny_stages)(), out_features=["c5"], freeze_at=0)
model.head.in_channels = [1024]
model.head.conv_dims = [512]
model.head_in_features = ["c5"]
model.level_losses[0].rescore = False
