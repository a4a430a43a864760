"""Non-maximum suppression in plain torch: what :mod:`d2proj.ops.nms` computes, box by box."""

import torch
from torch import Tensor


def _rank(scores: Tensor) -> Tensor:
    """Indices by descending score, equal scores in order, NaN last."""
    wide = scores.double()
    nan_last = torch.where(wide.isnan(), torch.inf, -wide)
    # -inf scores and NaN both sort as +inf: a second, stable sort puts NaN behind.
    by_score = torch.sort(nan_last, stable=True).indices
    is_nan = wide[by_score].isnan().to(torch.uint8)
    return by_score[torch.sort(is_nan, stable=True).indices]


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """IoU of a (4,) with each of (N, 4); NaN where it is 0 / 0 or a coordinate is NaN."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])  # (N,)
    corner = torch.maximum(box[:2], others[:, :2])  # (N, 2)
    sides = (torch.minimum(box[2:], others[:, 2:]) - corner).clamp(min=0)  # (N, 2)
    inter = sides[:, 0] * sides[:, 1]
    return inter / (area + areas - inter)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """See :func:`d2proj.ops.batched_nms`. O(N K) time, O(N) memory."""
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    order = _rank(scores)
    boxes, idxs = boxes[order], idxs[order]
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if alive[i]:
            # The comparison is in float64, so that the threshold itself is not rounded.
            falls = _iou(boxes[i], boxes[i + 1 :]).double() > iou_threshold
            alive[i + 1 :] &= ~(falls & (idxs[i + 1 :] == idxs[i]))
    return order[alive]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """See :func:`d2proj.ops.nms`. O(N K) time, O(N) memory."""
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)
