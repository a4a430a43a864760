"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.necks.yolo import YOLOFPN, Passthrough, SPPTop

__all__ = ["FPN", "YOLOFPN", "LastLevelMaxPool", "LastLevelP6P7", "Passthrough", "SPPTop"]
