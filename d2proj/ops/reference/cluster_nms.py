"""Cluster-NMS in plain torch, as its paper writes it: a matrix, iterated to its fixed point."""

import torch
from torch import Tensor

from d2proj.ops.reference.diou_nms import _penalty
from d2proj.ops.reference.matrix_nms import _better
from d2proj.ops.reference.nms import _rank
from d2proj.ops.reference.soft_nms import _dets, _prepare


def batched_cluster_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    variant: str = "plain",
    *,
    beta: float = 1.0,
    sigma: float = 0.2,
    min_score: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """See :func:`d2proj.ops.batched_cluster_nms`, for thresholds from 0. O(N^2) memory."""
    order = _rank(scores)
    boxes, scores = _prepare(boxes, scores)
    ranked, weight = boxes[order], scores[order]
    iou = _better(ranked, idxs[order])
    overlap = iou
    if variant == "distance" and len(order):
        penalty = torch.stack([_penalty(box, ranked, beta) for box in ranked])
        overlap = torch.where(iou > 0, iou - penalty, 0)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    while len(order):
        now = ~((overlap.double() > iou_threshold) & kept[:, None]).any(dim=0)
        if torch.equal(now, kept):
            break
        kept = now
    mask = torch.zeros_like(kept)
    mask[order] = kept
    if variant == "score_penalty":
        squares = ((iou**2) * kept[:, None]).double().sum(dim=0)
        penalised = torch.where(weight > 0, weight * torch.exp(-squares / sigma), weight)
        new = torch.empty_like(scores)
        new[order] = penalised.to(scores.dtype)
        return _dets(boxes, new, ~(new < min_score))
    if variant == "weighted" and len(order):
        weights = torch.where(iou.double() > iou_threshold, iou, 0).double()
        weights = (weights + torch.eye(len(order), device=boxes.device)) * weight.double()
        total = weights.sum(dim=1, keepdim=True)  # (N, 1)
        mean = (weights @ ranked.double().nan_to_num(0, 0, 0)) / total
        alone = (weights != 0).sum(dim=1, keepdim=True) < 2
        usable = (total > 0) & ~alone & ranked.isfinite().all(dim=1, keepdim=True)
        boxes = boxes.clone()
        boxes[order] = torch.where(usable, mean.to(boxes.dtype), ranked)
    return _dets(boxes, scores, mask)


def cluster_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    variant: str = "plain",
    *,
    beta: float = 1.0,
    sigma: float = 0.2,
    min_score: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """See :func:`d2proj.ops.cluster_nms`, for thresholds from 0. O(N^2) time and memory."""
    idxs = torch.zeros_like(scores, dtype=torch.int64)
    options = {"beta": beta, "sigma": sigma, "min_score": min_score}
    return batched_cluster_nms(boxes, scores, idxs, iou_threshold, variant, **options)
