"""Box arithmetic on plain tensors: (..., 4) as x1, y1, x2, y2 in pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2proj.ops import box_iou


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M). Empty unions give 0."""
    return box_iou(boxes1, boxes2)


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
