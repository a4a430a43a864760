"""YOLOv3 whose levels ASFF fuses, COCO, darknet's schedule (Liu, Huang & Wang 2019)."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import ASFF

from .yolov3 import data, dataset, eval, model, optimizer, schedule, train

# ASFF ends in the 3x3 convolution that the head has in YOLOv3.
model.backbone = L(ASFF)(
    backbone=model.backbone, in_features=["p3", "p4", "p5"], out_channels=[256, 512, 1024]
)
model.head.in_channels = "${..backbone.out_channels}"
model.head.conv_dims = [0, 0, 0]
