"""A detector as a cfg file describes it, without code."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2proj.darknet.network import BN_EPS, DarknetNetwork
from d2proj.darknet.plan import Layer, plan_network
from d2proj.errors import InputError
from d2proj.modeling.dense_heads.yolo import (
    Decoder,
    DetectionDecoder,
    GaussianYOLODecoder,
    RegionDecoder,
    YOLODecoder,
)


def make_decoder(layer: Layer) -> Decoder:
    """The decoder that a section of predictions describes."""
    section = layer.section
    classes = section.integer("classes", 20, low=1, high=1 << 20)
    if layer.kind == "detection":
        return DetectionDecoder(
            num_classes=classes,
            side=section.integer("side", 7, low=1, high=1024),
            boxes_per_cell=section.integer("num", 1, low=1, high=4096),
            square_root=section.flag("sqrt"),
        )
    flat = section.numbers("anchors")
    anchors = [flat[i : i + 2] for i in range(0, len(flat) - 1, 2)]
    total = section.integer("num", 1, low=1, high=4096)
    if layer.kind == "region":
        if "tree" in section.options:
            section.fail("a tree of classes needs its file; WordTree is not supported here", "tree")
        return RegionDecoder(
            anchors=anchors[:total], num_classes=classes, softmax=section.flag("softmax")
        )
    own = [anchors[i] for i in section.integers("mask") or range(total)]
    scale = section.number("scale_x_y", 1.0)
    if layer.kind == "Gaussian_yolo":
        return GaussianYOLODecoder(anchors=own, num_classes=classes, scale_x_y=scale)
    return YOLODecoder(
        anchors=own,
        num_classes=classes,
        scale_x_y=scale,
        new_coords=section.flag("new_coords"),
    )
