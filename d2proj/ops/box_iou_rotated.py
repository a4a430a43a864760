"""IoU of every pair of rotated boxes: functional form and registrations.

Detectron2's signature and meaning; the method and what is promised beyond it are in
``docs/ops/box_iou_rotated.md``.
"""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import refuse_vmap, register_autocast


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every rotated box with every other.

    Signature and result are those of ``detectron2.layers.pairwise_iou_rotated``, but for rounding
    (docs). Not differentiable: the result carries no gradient.

    Args:
        boxes1: (N, 5) of centre x, centre y, width, height (any one unit) and angle in degrees
            counter-clockwise; float32 or float64 (float16 and bfloat16 are raised to float32).
            A box without area, inverted, infinite or with a NaN overlaps nothing.
        boxes2: (M, 5), likewise.

    Returns:
        (N, M) in [0, 1], never NaN; float64 if either argument is, else float32.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    if boxes1.requires_grad or boxes2.requires_grad:
        boxes1, boxes2 = boxes1.detach(), boxes2.detach()
    return torch.ops.d2proj.box_iou_rotated(boxes1, boxes2)


def _check(name: str, boxes: Tensor) -> None:
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 5,
        lambda: f"box_iou_rotated: {name} must have shape (N, 5), got {tuple(boxes.shape)}",
    )


def _fake(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    _check("boxes1", boxes1)
    _check("boxes2", boxes2)
    wide = torch.float64 in (boxes1.dtype, boxes2.dtype)
    dtype = torch.float64 if wide else torch.float32
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=dtype)


if _ext.AVAILABLE:
    torch.library.register_fake("d2proj::box_iou_rotated", _fake)
    register_autocast("box_iou_rotated", box_arguments=(0, 1))
    refuse_vmap("box_iou_rotated")
