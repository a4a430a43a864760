"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.necks.yolo import YOLOFPN, Passthrough, SPPTop
from d2proj.modeling.necks.yolo_bfm import BFMPAN
from d2proj.modeling.necks.yolo_pan import CSPPAN, YOLOPAN, CSPTop, YOLOv4Top

__all__ = [
    "BFMPAN",
    "CSPPAN",
    "YOLOPAN",
    "CSPTop",
    "YOLOv4Top",
    "FPN",
    "YOLOFPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "Passthrough",
    "SPPTop",
]
