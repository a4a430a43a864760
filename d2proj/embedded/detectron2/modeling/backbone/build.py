"""The registry of backbones."""

from detectron2.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY"]

BACKBONE_REGISTRY = Registry("BACKBONE")
