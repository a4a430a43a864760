"""Soft-NMS in plain torch: what :mod:`d2proj.ops.soft_nms` computes, box by box."""

import torch
from torch import Tensor

from d2proj.ops.reference.nms import _iou, _rank


def _prepare(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that is computed in."""
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    dtype = torch.float64 if wide else torch.float32
    return boxes.to(dtype), scores.to(dtype)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """IoU of a (4,) with each of (N, 4); 0 where either is empty, inverted or not finite."""
    sides = others[:, 2:] - others[:, :2]
    own = box[2:] - box[:2]
    area, areas = own[0] * own[1], sides[:, 0] * sides[:, 1]
    proper = (own > 0).all() & (area > 0) & area.isfinite()
    proper = proper & (sides > 0).all(1) & (areas > 0) & areas.isfinite()
    return torch.where(proper, _iou(box, others), 0)


def _dets(boxes: Tensor, scores: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept boxes (a mask) with their scores, by descending score."""
    index = kept.nonzero()[:, 0]
    keep = index[_rank(scores[index])]
    return torch.cat([boxes[keep], scores[keep, None]], dim=1), keep


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
) -> tuple[Tensor, Tensor]:
    """See :func:`d2proj.ops.batched_soft_nms`. O(N^2) time, O(N) memory."""
    boxes, scores = _prepare(boxes, scores)
    scores = scores.clone()
    # Both count as numbers of the scores' dtype.
    floor, width = scores.new_tensor(min_score), scores.new_tensor(sigma)
    dropped = scores < floor
    taken = torch.zeros_like(dropped)
    while not (taken | dropped).all():
        left = (~(taken | dropped)).nonzero()[:, 0]
        best = left[_rank(scores[left])[0]]
        taken[best] = True
        rest = (~(taken | dropped) & (idxs == idxs[best])).nonzero()[:, 0]
        iou = _overlaps(boxes[best], boxes[rest])
        acts = (iou.double() >= iou_threshold) & (iou > 0)
        if method == "hard":
            dropped[rest[acts]] = True
            continue
        if method == "linear":
            weight = torch.where(acts, (1 - iou).clamp(min=0), 1)
        else:
            weight = torch.exp(-(iou * iou) / width)
        falling = scores[rest] > 0
        scores[rest] = torch.where(falling, scores[rest] * weight, scores[rest])
        dropped[rest] |= falling & ~(scores[rest] >= floor)
    return _dets(boxes, scores, taken)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
) -> tuple[Tensor, Tensor]:
    """See :func:`d2proj.ops.soft_nms`. O(N^2) time, O(N) memory."""
    idxs = torch.zeros_like(scores, dtype=torch.int64)
    return batched_soft_nms(boxes, scores, idxs, iou_threshold, sigma, min_score, method)
