"""YOLOv1 as in the paper."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones.yolov1 import YOLOV1_STAGES, YOLOv1Backbone
from d2proj.modeling.dense_heads import YOLOv1Head
from d2proj.modeling.dense_heads.yolo import DetectionDecoder
from d2proj.modeling.losses.region import DetectionLoss
from d2proj.modeling.meta_arch import YOLO
from d2proj.modeling.postprocess import PerClassNMS

model = L(YOLO)(
    backbone=L(YOLOv1Backbone)(stages=YOLOV1_STAGES, norm="", activation="leaky"),
    head=L(YOLOv1Head)(
        in_channels=1024,
        side=7,
        boxes_per_cell=2,
        num_classes="${..num_classes}",
        fc_dims=[4096],
        local_channels=0,
        dropout=0.5,
    ),
    head_in_features=["grid"],
    decoders=[
        L(DetectionDecoder)(
            num_classes="${...num_classes}",
            side="${...head.side}",
            boxes_per_cell="${...head.boxes_per_cell}",
            square_root=True,
        )
    ],
    level_losses=[
        L(DetectionLoss)(
            num_classes="${...num_classes}",
            object_scale=1.0,
            noobject_scale=0.5,
            class_scale=1.0,
            coord_scale=5.0,
            rescore=True,
        )
    ],
    postprocess=L(PerClassNMS)(
        score_thresh=0.005, nms_thresh=0.5, max_detections=100, topk_candidates=-1, clip=False
    ),
    num_classes=20,
    pixel_mean=[0.0, 0.0, 0.0],
    pixel_std=[255.0, 255.0, 255.0],
    input_format="RGB",
)
