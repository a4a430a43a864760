"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

__all__ = ["FPN", "LastLevelMaxPool", "LastLevelP6P7"]
