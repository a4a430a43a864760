"""d2proj: a Detectron2 project whose detectors run on its own compiled C++/CUDA ops."""

from d2proj import _detectron2

__version__ = "0.1.0"

_detectron2.ensure()
