"""Backbones: (N, 3, H, W) to a dict of named feature maps."""

from d2proj.modeling.backbones.csp_darknet import (
    CSPStage,
    TappedCSPDarknet,
    TinyCSPDarknet,
    WeightedResidual,
    csp_darknet53_stages,
    miwrc_csp_darknet53_stages,
    yolov4_csp_stages,
)
from d2proj.modeling.backbones.csp_resnext import CSPResNeXt50
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
from d2proj.modeling.backbones.vgg import VGG
from d2proj.modeling.backbones.yolov1 import YOLOv1Backbone

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "CSPResNeXt50",
    "CSPStage",
    "ConvStem",
    "Darknet",
    "DarknetClassifier",
    "DarknetResidual",
    "ResNet",
    "SameMaxPool2d",
    "TappedCSPDarknet",
    "TinyCSPDarknet",
    "VGG",
    "WeightedResidual",
    "YOLOv1Backbone",
    "convolutions",
    "csp_darknet53_stages",
    "darknet19_stages",
    "darknet53_stages",
    "darknet_tiny_stages",
    "miwrc_csp_darknet53_stages",
    "resnet_stages",
    "yolov4_csp_stages",
]
