"""Gaussian YOLOv3: YOLOv3 whose coordinates come with deviations. Anchors of BDD100K."""

from detectron2.config import LazyCall as L

from d2proj.modeling.dense_heads.yolo import GaussianYOLODecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.gaussian_yolo import GaussianYOLOLoss

from .yolov3 import model

model.head.box_values = 9
model.anchors = [
    [7, 10],
    [14, 24],
    [27, 43],
    [32, 97],
    [57, 64],
    [92, 109],
    [73, 175],
    [141, 178],
    [144, 291],
]
model.decoders = [
    L(GaussianYOLODecoder)(anchors="${...anchors}", mask=mask, num_classes="${...num_classes}")
    for mask in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
]
model.level_losses = [
    L(GaussianYOLOLoss)(
        anchors="${...anchors}",
        mask=mask,
        num_classes="${...num_classes}",
        box_loss=L(DarknetIoULoss)(kind="giou"),  # null: the likelihood alone, as in the paper
        ignore_thresh=0.5,
        iou_thresh=0.213,
        iou_normalizer=0.5,
        uc_normalizer=1.0,
    )
    for mask in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
]
model.num_classes = 10
