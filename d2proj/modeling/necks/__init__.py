"""Necks: a dict of named maps in, a dict of named maps out."""

from d2proj.modeling.necks.asff import ASFF
from d2proj.modeling.necks.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from d2proj.modeling.necks.mlfpn import MLFPN, SFAM, TUM
from d2proj.modeling.necks.pan import PAN
from d2proj.modeling.necks.ssd import ExtraLayer, SSDNeck
from d2proj.modeling.necks.wrapper import LevelBlocks, LevelNeck
from d2proj.modeling.necks.yolo import YOLOFPN, Passthrough, SPPTop
from d2proj.modeling.necks.yolo_bfm import BFMPAN
from d2proj.modeling.necks.yolo_pan import CSPPAN, YOLOPAN, CSPTop, YOLOv4Top

__all__ = [
    "ASFF",
    "BFMPAN",
    "CSPPAN",
    "CSPTop",
    "ExtraLayer",
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "LevelBlocks",
    "LevelNeck",
    "MLFPN",
    "PAN",
    "Passthrough",
    "SFAM",
    "SPPTop",
    "SSDNeck",
    "TUM",
    "YOLOFPN",
    "YOLOPAN",
    "YOLOv4Top",
]
