"""DIoU-NMS in plain torch: what :mod:`d2proj.ops.diou_nms` computes, box by box."""

import torch
from torch import Tensor

from d2proj.ops.reference.nms import _iou, _rank


def _penalty(box: Tensor, others: Tensor, beta: float) -> Tensor:
    """(d^2 / c^2)^beta of a (4,) with each of (N, 4)."""
    offset = (box[:2] + box[2:]) * 0.5 - (others[:, :2] + others[:, 2:]) * 0.5
    around = torch.maximum(box[2:], others[:, 2:]) - torch.minimum(box[:2], others[:, :2])
    diagonal = around[:, 0] * around[:, 0] + around[:, 1] * around[:, 1]
    distance = offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1]
    ratio = torch.where(diagonal > 0, distance / diagonal, 0)
    return ratio if beta == 1 else ratio**beta


def batched_diou_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, beta: float = 1.0
) -> Tensor:
    """See :func:`d2proj.ops.batched_diou_nms`. O(N K) time, O(N) memory."""
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    order = _rank(scores)
    boxes, idxs = boxes[order], idxs[order]
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if alive[i]:
            rest = boxes[i + 1 :]
            diou = _iou(boxes[i], rest) - _penalty(boxes[i], rest, beta)
            alive[i + 1 :] &= ~((diou.double() > iou_threshold) & (idxs[i + 1 :] == idxs[i]))
    return order[alive]


def diou_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, beta: float = 1.0) -> Tensor:
    """See :func:`d2proj.ops.diou_nms`. O(N K) time, O(N) memory."""
    idxs = torch.zeros_like(scores, dtype=torch.int64)
    return batched_diou_nms(boxes, scores, idxs, iou_threshold, beta)
