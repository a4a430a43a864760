"""Backbones: (N, 3, H, W) to a dict of named feature maps."""

from d2proj.modeling.backbones.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ConvStem,
    ResNet,
    resnet_stages,
)
from d2proj.modeling.backbones.yolov1 import YOLOv1Backbone

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ConvStem",
    "ResNet",
    "YOLOv1Backbone",
    "resnet_stages",
]
