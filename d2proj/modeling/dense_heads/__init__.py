"""Heads that predict at every cell of every level."""

from d2proj.modeling.dense_heads.retinanet import RetinaNetHead

__all__ = ["RetinaNetHead"]
