"""Small helpers that describe and join tensors; the layers themselves are in ``d2proj.layers``."""

from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import cat, nonzero_tuple

__all__ = ["ShapeSpec", "cat", "nonzero_tuple"]
