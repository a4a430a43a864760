"""Configuration as Python files of calls that are made later."""

from detectron2.config.instantiate import instantiate
from detectron2.config.lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
