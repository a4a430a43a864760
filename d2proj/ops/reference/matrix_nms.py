"""Matrix NMS in plain torch, as its paper writes it: with the whole matrix."""

import torch
from torch import Tensor

from d2proj.ops.reference.nms import _rank
from d2proj.ops.reference.soft_nms import _dets, _overlaps, _prepare


def _better(boxes: Tensor, idxs: Tensor) -> Tensor:
    """(N, N) IoU of each box (column) with those of its class that rank before it, else 0."""
    rows = [_overlaps(box, boxes) for box in boxes]
    iou = torch.stack(rows) if rows else boxes.new_zeros(0, 0)
    return (iou * (idxs[:, None] == idxs)).triu(diagonal=1).clamp(max=1)


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    method: str = "gaussian",
    sigma: float = 2.0,
    min_score: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """See :func:`d2proj.ops.matrix_nms`. O(N^2) time and memory."""
    order = _rank(scores)
    boxes, scores = _prepare(boxes, scores)
    idxs = torch.zeros_like(scores, dtype=torch.int64) if idxs is None else idxs
    iou = _better(boxes[order], idxs[order])
    most = iou.max(dim=0).values if len(order) else iou.sum(0)
    if method == "gaussian":
        decay = torch.exp(-sigma * (iou**2 - most[:, None] ** 2))
    else:
        # 0 / 0 where a box is covered wholly by a better one: it does nothing.
        decay = torch.nan_to_num((1 - iou) / (1 - most[:, None]), nan=1.0)
    factor = decay.min(dim=0).values.clamp(max=1) if len(order) else most
    lowered = torch.where(scores[order] > 0, scores[order] * factor, scores[order])
    new = torch.empty_like(scores)
    new[order] = lowered
    return _dets(boxes, new, ~(new < min_score))
