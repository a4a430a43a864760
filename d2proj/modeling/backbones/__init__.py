"""Backbones: (N, 3, H, W) to a dict of named feature maps."""

from d2proj.modeling.backbones.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ConvStem,
    ResNet,
    resnet_stages,
)
from d2proj.modeling.backbones.vgg import VGG

__all__ = [
    "VGG",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ConvStem",
    "ResNet",
    "resnet_stages",
]
