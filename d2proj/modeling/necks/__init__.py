"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.necks.ssd import ExtraLayer, SSDNeck

__all__ = ["FPN", "ExtraLayer", "LastLevelMaxPool", "LastLevelP6P7", "SSDNeck"]
