"""The registry of complete detectors."""

from detectron2.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY"]

META_ARCH_REGISTRY = Registry("META_ARCH")
