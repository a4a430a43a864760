"""The element-wise losses of the IoU family in plain torch; autograd differentiates them."""

import torch
from torch import Tensor

from d2proj.ops.reference.box_iou import (
    aspect_penalty,
    centre_distance,
    hull_sides,
    overlap,
    ratio,
)


def _raise(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    a, b = torch.broadcast_tensors(boxes1.to(dtype), boxes2.to(dtype))
    return a, b


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.sum() / max(loss.numel(), 1)
    return loss.sum() if reduction == "sum" else loss


def _iou(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inter, union = overlap(a, b)
    return ratio(inter, union + eps), union


def iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    mode: str = "linear",
) -> Tensor:
    """See :func:`d2proj.ops.iou_loss`."""
    iou, _ = _iou(*_raise(boxes1, boxes2), eps)
    return _reduce(1 - iou if mode == "linear" else -iou.clamp(min=eps).log(), reduction)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """See :func:`d2proj.ops.generalized_box_iou_loss`."""
    a, b = _raise(boxes1, boxes2)
    iou, union = _iou(a, b, eps)
    hull = hull_sides(a, b).prod(-1)
    return _reduce(1 - (iou - ratio(hull - union, hull + eps)), reduction)


def _distance(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    iou, _ = _iou(a, b, eps)
    diagonal = (hull_sides(a, b) ** 2).sum(-1) + eps
    return 1 - iou + ratio(centre_distance(a, b), diagonal), iou


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """See :func:`d2proj.ops.distance_box_iou_loss`."""
    return _reduce(_distance(*_raise(boxes1, boxes2), eps)[0], reduction)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """See :func:`d2proj.ops.complete_box_iou_loss`."""
    a, b = _raise(boxes1, boxes2)
    loss, iou = _distance(a, b, eps)
    return _reduce(loss + aspect_penalty(a, b, iou, eps), reduction)
