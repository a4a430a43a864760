"""Backbones: (N, 3, H, W) to a dict of named feature maps."""

from d2proj.modeling.backbones.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ConvStem,
    ResNet,
    resnet_stages,
)

__all__ = ["BasicBlock", "BasicStem", "BottleneckBlock", "ConvStem", "ResNet", "resnet_stages"]
