"""Non-maximum suppression of rotated boxes in plain torch, box by box."""

import torch
from torch import Tensor

from d2proj.ops.reference.box_iou_rotated import box_iou_rotated
from d2proj.ops.reference.nms import _rank


def batched_nms_rotated(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """See :func:`d2proj.ops.batched_nms_rotated`. O(N^2) Python steps."""
    order = _rank(scores)
    iou = box_iou_rotated(boxes, boxes)[order][:, order].double()
    falls = (iou > iou_threshold) & (idxs[order][:, None] == idxs[order])
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~falls[i, i + 1 :]
    return order[alive]


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """See :func:`d2proj.ops.nms_rotated`. O(N^2) Python steps."""
    idxs = torch.zeros_like(scores, dtype=torch.int64)
    return batched_nms_rotated(boxes, scores, idxs, iou_threshold)
