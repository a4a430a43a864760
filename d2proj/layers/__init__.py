"""Small blocks that networks are made of."""

from d2proj.layers.activation import get_activation
from d2proj.layers.attention import CBAM, PointwiseSAM, SqueezeExcitation
from d2proj.layers.conv import Conv2d, conv_norm_act
from d2proj.layers.cross_iteration import CBNConv2d
from d2proj.layers.dropblock import DropBlock
from d2proj.layers.filter_response import FRN, TLU
from d2proj.layers.l2norm import L2Norm
from d2proj.layers.local import LocallyConnected2d
from d2proj.layers.norm import FrozenBatchNorm2d, PerLevelBatchNorm2d, get_norm
from d2proj.layers.norm_cross import CmBN
from d2proj.layers.receptive_field import ASPP, RFB, SPP, RFBs, SPPBlock
from d2proj.layers.reorg import Reorg, SpaceToDepth
from d2proj.layers.weighted_sum import WeightedSum

__all__ = [
    "ASPP",
    "CBAM",
    "FRN",
    "RFB",
    "SPP",
    "TLU",
    "CBNConv2d",
    "CmBN",
    "Conv2d",
    "DropBlock",
    "FrozenBatchNorm2d",
    "L2Norm",
    "LocallyConnected2d",
    "PerLevelBatchNorm2d",
    "PointwiseSAM",
    "RFBs",
    "Reorg",
    "SPPBlock",
    "SpaceToDepth",
    "SqueezeExcitation",
    "WeightedSum",
    "conv_norm_act",
    "get_activation",
    "get_norm",
]
