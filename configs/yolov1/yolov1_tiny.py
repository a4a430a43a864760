"""Fast YOLO: nine convolutions (Redmon et al. 2016, section 2.1), trained as YOLOv1."""

from d2proj.modeling.backbones.yolov1 import FAST_YOLO_STAGES

from .yolov1 import data, dataset, eval, model, optimizer, schedule, train

model.backbone.stages = FAST_YOLO_STAGES
model.head.fc_dims = [256, 4096]
