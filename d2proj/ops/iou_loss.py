"""The element-wise losses of the IoU family: functions and registrations.

``1 - x`` of IoU, generalized, distance and complete IoU (see :mod:`d2proj.ops.box_iou`), each one
kernel forward and one backward. What happens at the edges is in ``docs/ops/iou_loss.md``.
"""

from typing import Any

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import register_autocast, register_differentiable
from d2proj.ops._direct import direct
from d2proj.ops.box_iou import _COMPLETE, _DISTANCE, _GENERALIZED, _IOU, same_box_dtype

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    mode: str = "linear",
) -> Tensor:
    """``1 - IoU``, or ``-log(IoU)``, of the i-th box with the i-th.

    Args:
        boxes1: (..., 4) of x1, y1, x2, y2, any unit; float32 or float64 (other dtypes are raised
            to float32).
        boxes2: As ``boxes1``; shapes broadcast.
        reduction: ``none``, ``mean`` or ``sum``.
        eps: Added to the union; with ``log``, also the least IoU that the logarithm sees.
        mode: ``linear``: 1 - IoU (darknet, mmdet's ``linear``); ``log``: -log(max(IoU, eps)) (Yu
            et al., UnitBox, 2016; mmdet's default), without gradient where the IoU is below eps.

    Returns:
        (...,), or a scalar with ``mean`` (0 for no boxes) and ``sum``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``reduction`` or ``mode`` is unknown.
    """
    if mode not in ("linear", "log"):
        raise ValueError(f"iou_loss: mode must be linear or log, got {mode!r}")
    return _loss("iou_loss", boxes1, boxes2, _IOU, mode == "log", reduction, eps)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """``1 - GIoU`` of the i-th box with the i-th (Rezatofighi et al., CVPR 2019).

    Args:
        boxes1: (..., 4), as in :func:`iou_loss`.
        boxes2: (..., 4).
        reduction: ``none``, ``mean`` or ``sum``.
        eps: Added to the areas that are divided by.

    Returns:
        (...,), or a scalar with ``mean`` (0 for no boxes) and ``sum``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``reduction`` is unknown.
    """
    op = "generalized_box_iou_loss"
    return _loss(op, boxes1, boxes2, _GENERALIZED, False, reduction, eps)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """``1 - DIoU`` of the i-th box with the i-th (Zheng et al., AAAI 2020, eq. 7).

    Args:
        boxes1: (..., 4), as in :func:`iou_loss`.
        boxes2: (..., 4).
        reduction: ``none``, ``mean`` or ``sum``.
        eps: Added to the union and to the squared diagonal.

    Returns:
        (...,), or a scalar with ``mean`` (0 for no boxes) and ``sum``.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``reduction`` is unknown.
    """
    return _loss("distance_box_iou_loss", boxes1, boxes2, _DISTANCE, False, reduction, eps)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """``1 - CIoU`` of the i-th box with the i-th (Zheng et al., AAAI 2020, eq. 10).

    Args:
        boxes1: (..., 4), as in :func:`iou_loss`.
        boxes2: (..., 4).
        reduction: ``none``, ``mean`` or ``sum``.
        eps: Added to the union, to the squared diagonal and to alpha's divisor.

    Returns:
        (...,), or a scalar with ``mean`` (0 for no boxes) and ``sum``. alpha is a constant in the
        gradient, as in the paper.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
        ValueError: ``reduction`` is unknown.
    """
    return _loss("complete_box_iou_loss", boxes1, boxes2, _COMPLETE, False, reduction, eps)


def _loss(
    op: str, boxes1: Tensor, boxes2: Tensor, kind: int, log: bool, reduction: str, eps: float
) -> Tensor:
    if not _ext.AVAILABLE:
        _ext.require()
    code = _REDUCTIONS.get(reduction)
    if code is None:
        raise ValueError(f"{op}: reduction must be none, mean or sum, got {reduction!r}")
    if not boxes1.dtype == boxes2.dtype == torch.float32:
        boxes1, boxes2 = same_box_dtype(boxes1, boxes2)
    if boxes1.shape != boxes2.shape:
        boxes1, boxes2 = torch.broadcast_tensors(boxes1, boxes2)
    return _call(boxes1, boxes2, kind, log, code, eps)


def _forward_fake(
    boxes1: Tensor, boxes2: Tensor, kind: int, log: bool, reduction: int, eps: float
) -> Tensor:
    torch._check(
        boxes1.dim() >= 1 and boxes1.shape[-1] == 4,
        lambda: f"box_iou_loss: boxes1 must have shape (..., 4), got {tuple(boxes1.shape)}",
    )
    return boxes1.new_empty(() if reduction else boxes1.shape[:-1])


def _backward_fake(
    grad: Tensor,
    boxes1: Tensor,
    boxes2: Tensor,
    kind: int,
    log: bool,
    reduction: int,
    eps: float,
    want1: bool,
    want2: bool,
) -> tuple[Tensor, Tensor]:
    return (
        boxes1.new_empty(boxes1.shape if want1 else (0,)),
        boxes2.new_empty(boxes2.shape if want2 else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, *ctx.options = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    want1, want2 = ctx.needs_input_grad[:2]
    grad1, grad2 = torch.ops.d2proj._box_iou_loss_backward.default(
        grad, *ctx.saved_tensors, *ctx.options, want1, want2
    )
    return grad1 if want1 else None, grad2 if want2 else None, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "box_iou_loss",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("box_iou_loss", box_arguments=[0, 1])
    _call = direct(torch.ops.d2proj.box_iou_loss.default, _setup_context, _backward)
