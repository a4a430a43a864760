"""YOLOv3 with spatial pyramid pooling over the coarsest map."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import SPPTop

from .yolov3 import model

model.backbone.top_block = L(SPPTop)(in_channels=1024, channels=512)
model.backbone.dims[2] = [512, 1024, 512]
