"""Whole detectors: each composes parts and is registered under ``"d2proj.<ClassName>"``."""

from d2proj.modeling.meta_arch.base import Detector, register
from d2proj.modeling.meta_arch.dense import DenseDetector
from d2proj.modeling.meta_arch.retinanet import RetinaNet
from d2proj.modeling.meta_arch.ssd import SSD
from d2proj.modeling.meta_arch.two_stage import FasterRCNN
from d2proj.modeling.meta_arch.yolo import YOLO, RawMaps

__all__ = [
    "SSD",
    "YOLO",
    "DenseDetector",
    "Detector",
    "FasterRCNN",
    "RawMaps",
    "RetinaNet",
    "register",
]
