"""The registry of complete detectors."""

from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY

__all__ = ["META_ARCH_REGISTRY"]
