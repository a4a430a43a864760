"""Pairwise IoU and its relatives in plain torch, one definition a line; autograd differentiates."""

import math

import torch
from torch import Tensor


def _raise(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N, 1, 4) and (..., 1, M, 4), in float32 at least."""
    dtype = torch.promote_types(torch.promote_types(boxes1.dtype, boxes2.dtype), torch.float32)
    return boxes1.to(dtype)[..., :, None, :], boxes2.to(dtype)[..., None, :, :]


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``; 0, with no gradient, where b is 0."""
    zero = b == 0
    return torch.where(zero, 0.0, a / torch.where(zero, 1.0, b))


def positive(x: Tensor) -> Tensor:
    """``x`` where above 0, else 0 with no gradient (releases of torch differ in clamp's at 0)."""
    return torch.where(x > 0, x, 0.0)


def aspect_angle(w: Tensor, h: Tensor) -> Tensor:
    """atan(w / h); 0 for a point. Its gradient is written out: w / h has none at h = 0."""
    w0, h0 = w.detach(), h.detach()
    angle = torch.where(h0 == 0, torch.sign(w0) * math.pi / 2, torch.atan(ratio(w0, h0)))
    squares = w0 * w0 + h0 * h0
    inverse = torch.where(squares < 1e-30, 0.0, 1 / squares)
    return torch.where(w0.isnan() | h0.isnan(), torch.nan, angle) + (
        (w - w0) * (h0 * inverse) - (h - h0) * (w0 * inverse)
    )


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of (..., 4) boxes."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    sides = positive(sides)
    inter = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    return inter, area_a + area_b - inter


def hull_sides(a: Tensor, b: Tensor) -> Tensor:
    """(..., 2) width and height of the smallest enclosing boxes."""
    return torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])


def centre_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of centres."""
    d = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    return d[..., 0] ** 2 + d[..., 1] ** 2


def aspect_penalty(a: Tensor, b: Tensor, iou: Tensor, eps: float) -> Tensor:
    """``alpha * v``, alpha a constant."""
    angles = [aspect_angle(x[..., 2] - x[..., 0], x[..., 3] - x[..., 1]) for x in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    with torch.no_grad():
        alpha = ratio(v, 1 - iou + v + eps)
    return alpha * v


def _corners(boxes: Tensor, fmt: str) -> Tensor:
    if fmt == "xyxy":
        return boxes
    at, size = boxes[..., :2], boxes[..., 2:]
    low = at - size / 2 if fmt == "cxcywh" else at
    return torch.cat([low, at + (size / 2 if fmt == "cxcywh" else size)], -1)


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """See :func:`d2proj.ops.box_iou`."""
    a, b = _raise(boxes1, boxes2)
    return ratio(*overlap(_corners(a, fmt), _corners(b, fmt)))


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """See :func:`d2proj.ops.generalized_box_iou`."""
    a, b = _raise(boxes1, boxes2)
    inter, union = overlap(a, b)
    hull = positive(hull_sides(a, b)).prod(-1)
    return ratio(inter, union) - ratio(hull - union, hull)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """See :func:`d2proj.ops.distance_box_iou`."""
    a, b = _raise(boxes1, boxes2)
    diagonal = (positive(hull_sides(a, b)) ** 2).sum(-1) + eps
    return ratio(*overlap(a, b)) - ratio(centre_distance(a, b), diagonal)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """See :func:`d2proj.ops.complete_box_iou`."""
    a, b = _raise(boxes1, boxes2)
    iou = ratio(*overlap(a, b))
    return distance_box_iou(boxes1, boxes2, eps) - aspect_penalty(a, b, iou, eps)
