"""Pairwise IoU and its relatives: functions and registrations.

IoU; generalized IoU (Rezatofighi et al., CVPR 2019); distance and complete IoU (Zheng et al., AAAI
2020), with torchvision's signatures. What happens at the edges is in ``docs/ops/box_iou.md``.
"""

from typing import Any

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import register_autocast, register_differentiable
from d2proj.ops._direct import direct

# The op's numbers for what it computes and for how boxes are given.
_IOU, _GENERALIZED, _DISTANCE, _COMPLETE = range(4)
_NAMES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
_FORMATS = {"xyxy": 0, "xywh": 1, "cxcywh": 2}


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union of every pair.

    Args:
        boxes1: (..., N, 4), any unit; float32 or float64 (other dtypes are raised to float32).
        boxes2: (..., M, 4); leading sizes broadcast with those of ``boxes1``.
        fmt: What a box's numbers are: ``xyxy`` (x1, y1, x2, y2), ``xywh`` (x1, y1, width, height)
            or ``cxcywh`` (centre, width, height).

    Returns:
        (..., N, M); 0 where the union is 0, NaN where a coordinate is. Differentiable.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``fmt`` is none of the three.
    """
    if fmt not in _FORMATS:
        raise ValueError(
            f"box_iou: fmt must be one of {', '.join(_FORMATS)}, got {fmt!r} "
            "(for rotated boxes there is box_iou_rotated)"
        )
    return _pairwise(boxes1, boxes2, _IOU, _FORMATS[fmt], 0.0)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU less the share of the smallest enclosing box that is in neither, of every pair.

    Args:
        boxes1: (..., N, 4) of x1, y1, x2, y2, as in :func:`box_iou`.
        boxes2: (..., M, 4).

    Returns:
        (..., N, M), from -1 to 1 for boxes that are not inverted. Differentiable.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    return _pairwise(boxes1, boxes2, _GENERALIZED, 0, 0.0)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU less (distance of centres / diagonal of the smallest enclosing box)², of every pair.

    Args:
        boxes1: (..., N, 4) of x1, y1, x2, y2, as in :func:`box_iou`.
        boxes2: (..., M, 4).
        eps: Added to the squared diagonal.

    Returns:
        (..., N, M). Differentiable.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    return _pairwise(boxes1, boxes2, _DISTANCE, 0, eps)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Distance IoU less ``alpha * v``, a penalty of unlike aspect ratios, of every pair.

    Args:
        boxes1: (..., N, 4) of x1, y1, x2, y2, as in :func:`box_iou`.
        boxes2: (..., M, 4).
        eps: Added to the squared diagonal and to alpha's divisor.

    Returns:
        (..., N, M). Differentiable, alpha being a constant.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    return _pairwise(boxes1, boxes2, _COMPLETE, 0, eps)


def same_box_dtype(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 if one of them is."""
    wide = torch.float64 in (boxes1.dtype, boxes2.dtype)
    dtype = torch.float64 if wide else torch.float32
    return boxes1.to(dtype), boxes2.to(dtype)


def _pairwise(boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float) -> Tensor:
    if not _ext.AVAILABLE:
        _ext.require()
    if not boxes1.dtype == boxes2.dtype == torch.float32:
        boxes1, boxes2 = same_box_dtype(boxes1, boxes2)
    if boxes1.dim() > 2 or boxes2.dim() > 2:
        lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
        boxes1 = boxes1.expand(*lead, *boxes1.shape[-2:])
        boxes2 = boxes2.expand(*lead, *boxes2.shape[-2:])
    return _call(boxes1, boxes2, kind, format, eps)


def _forward_fake(boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float) -> Tensor:
    op = _NAMES[kind]
    torch._check(
        boxes1.dim() >= 2 and boxes1.shape[-1] == 4,
        lambda: f"{op}: boxes1 must have shape (..., N, 4), got {tuple(boxes1.shape)}",
    )
    torch._check(
        boxes2.dim() >= 2 and boxes2.shape[-1] == 4,
        lambda: f"{op}: boxes2 must have shape (..., M, 4), got {tuple(boxes2.shape)}",
    )
    return boxes1.new_empty((*boxes1.shape[:-1], boxes2.shape[-2]))


def _backward_fake(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, kind: int, format: int, eps: float
) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, *ctx.options = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.d2proj._pairwise_box_iou_backward.default(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return (*grads, None, None, None)


if _ext.AVAILABLE:
    register_differentiable(
        "pairwise_box_iou",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("pairwise_box_iou", box_arguments=[0, 1])
    _call = direct(torch.ops.d2proj.pairwise_box_iou.default, _setup_context, _backward)
