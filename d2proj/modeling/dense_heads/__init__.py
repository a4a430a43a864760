"""Heads that predict at every cell of every level."""

from d2proj.modeling.dense_heads.retinanet import RetinaNetHead
from d2proj.modeling.dense_heads.ssd import SSDHead
from d2proj.modeling.dense_heads.yolo_head import YOLOHead
from d2proj.modeling.dense_heads.yolov1 import YOLOv1ConvHead, YOLOv1Head

__all__ = ["RetinaNetHead", "SSDHead", "YOLOHead", "YOLOv1ConvHead", "YOLOv1Head"]
