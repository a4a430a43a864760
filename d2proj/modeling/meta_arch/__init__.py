"""Whole detectors: each composes parts and is registered under ``"d2proj.<ClassName>"``."""

from d2proj.modeling.meta_arch.base import Detector, register
from d2proj.modeling.meta_arch.dense import DenseDetector
from d2proj.modeling.meta_arch.retinanet import RetinaNet
from d2proj.modeling.meta_arch.ssd import SSD
from d2proj.modeling.meta_arch.two_stage import FasterRCNN
from d2proj.modeling.meta_arch.yolo import YOLO, RawMaps
from d2proj.modeling.meta_arch.yolo9000 import YOLO9000

__all__ = [
    "DenseDetector",
    "Detector",
    "FasterRCNN",
    "RawMaps",
    "RetinaNet",
    "SSD",
    "YOLO",
    "YOLO9000",
    "register",
]
