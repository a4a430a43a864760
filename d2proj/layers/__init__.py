"""Small blocks that networks are made of."""

from d2proj.layers.conv import Conv2d
from d2proj.layers.norm import FrozenBatchNorm2d, PerLevelBatchNorm2d, get_norm

__all__ = ["Conv2d", "FrozenBatchNorm2d", "PerLevelBatchNorm2d", "get_norm"]
