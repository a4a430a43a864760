"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.asff import ASFF
from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.necks.mlfpn import MLFPN, SFAM, TUM
from d2proj.modeling.necks.pan import PAN
from d2proj.modeling.necks.ssd import ExtraLayer, SSDNeck
from d2proj.modeling.necks.wrapper import LevelBlocks, LevelNeck

__all__ = [
    "ASFF",
    "FPN",
    "MLFPN",
    "PAN",
    "SFAM",
    "TUM",
    "ExtraLayer",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "LevelBlocks",
    "LevelNeck",
    "SSDNeck",
]
