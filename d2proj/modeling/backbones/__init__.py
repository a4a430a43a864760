"""Backbones: (N, 3, H, W) to a dict of named feature maps."""

from d2proj.modeling.backbones.darknet import (
    Darknet,
    DarknetClassifier,
    DarknetResidual,
    SameMaxPool2d,
    convolutions,
    darknet19_stages,
    darknet53_stages,
    darknet_tiny_stages,
)
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
    "Darknet",
    "DarknetClassifier",
    "DarknetResidual",
    "ResNet",
    "SameMaxPool2d",
    "YOLOv1Backbone",
    "convolutions",
    "darknet19_stages",
    "darknet53_stages",
    "darknet_tiny_stages",
    "resnet_stages",
]
