"""Box arithmetic on plain tensors: (..., 4) as x1, y1, x2, y2 in pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...,)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M). Empty unions give 0.

    Works on one coordinate at a time: no (N, M, 2) intermediate.
    """
    x1, y1, x2, y2 = boxes1[:, :, None].unbind(1)  # each (N, 1)
    u1, v1, u2, v2 = boxes2.t().contiguous().unbind(0)  # each (M,)
    intersection = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    intersection *= (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :]
    union -= intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip (..., 4) boxes to an image of ``size`` (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1
    )


def are_finite(boxes: Tensor, scores: Tensor) -> Tensor:
    """Which of the (N, 4) boxes and (N,) scores hold finite numbers alone: (N,) bool."""
    return torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)


def full_precision(x: Tensor) -> Tensor:
    """``x`` as float32 if it is stored in a half format: coordinates and losses need the digits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
