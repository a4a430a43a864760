"""Weighted boxes fusion and non-maximum weighted in plain torch, box by box."""

from collections.abc import Sequence

import torch
from torch import Tensor

Fused = tuple[Tensor, Tensor, Tensor]
#: Corners, score times weight, weight and model of a box; float64.
Member = tuple[Tensor, float, float, int]


def _iou(a: Tensor, b: Tensor) -> float:
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return (inter / (areas - inter)).item()


def _members(
    boxes_list: Sequence[Tensor],
    scores_list: Sequence[Tensor],
    labels_list: Sequence[Tensor],
    weights: Sequence[float],
    skip_box_thr: float,
) -> dict[int, list[Member]]:
    """By label, in the order of its first box: the boxes by descending score, the last first."""
    found: dict[int, list[Member]] = {}
    for model, (boxes, scores, labels) in enumerate(
        zip(boxes_list, scores_list, labels_list, strict=True)
    ):
        for box, score, label in zip(boxes.double(), scores.double(), labels, strict=True):
            lower, upper = torch.minimum(box[:2], box[2:]), torch.maximum(box[:2], box[2:])
            box = torch.cat([lower, upper]).clamp(0, 1)
            if score.item() >= skip_box_thr and (box[2:] - box[:2]).prod() != 0:
                weight = weights[model]
                member = (box, score.item() * weight, weight, model)
                found.setdefault(int(label), []).append(member)
    for members in found.values():
        members.reverse()
        members.sort(key=lambda member: -member[1])
    return found


def _mean(members: list[Member], shares: list[float]) -> Tensor:
    """Of the boxes, weighted; the running sum is rounded to float32 at each step."""
    total = torch.zeros(4)
    for member, share in zip(members, shares, strict=True):
        total = (total.double() + share * member[0]).float()
    return (total.double() / sum(shares)).float().double()


def _clusters(
    members: list[Member], iou_thr: float, follow: bool
) -> list[tuple[Tensor, list[Member]]]:
    """The fused (``follow``) or the best box of each cluster, and what is in it."""
    clusters: list[tuple[Tensor, list[Member]]] = []
    for member in members:
        best, found = iou_thr, -1
        for k, (box, _) in enumerate(clusters):
            iou = _iou(box, member[0])
            if iou > best:
                best, found = iou, k
        if found < 0:
            clusters.append((member[0], [member]))
        else:
            box, inside = clusters[found]
            inside.append(member)
            if follow:
                clusters[found] = (_mean(inside, [m[1] for m in inside]), inside)
    return clusters


def _sorted(fused: list[tuple[Tensor, float, int]], dtype: torch.dtype) -> Fused:
    fused = fused[::-1]  # of equal scores the last comes first
    fused.sort(key=lambda each: -each[1])
    boxes = torch.stack([f[0] for f in fused]) if fused else torch.empty(0, 4)
    scores = torch.tensor([f[1] for f in fused], dtype=torch.float64)
    return boxes.to(dtype), scores.to(dtype), torch.tensor([f[2] for f in fused]).long()


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).float().item()


def weighted_boxes_fusion(
    boxes_list: Sequence[Tensor],
    scores_list: Sequence[Tensor],
    labels_list: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> Fused:
    """See :func:`d2proj.ops.weighted_boxes_fusion`; tensors of one dtype only."""
    weights = [1.0] * len(boxes_list) if weights is None else weights
    by_label = _members(boxes_list, scores_list, labels_list, weights, skip_box_thr)
    fused = []
    for label, members in by_label.items():
        for box, inside in _clusters(members, iou_thr, follow=True):
            scores, n = [m[1] for m in inside], len(inside)
            score = max(scores) if conf_type == "max" else sum(scores) / n
            weight = sum(m[2] for m in inside)
            if n > 1:
                score, weight = _float32(score), _float32(weight)
            models = {m[3] for m in inside}
            present = sum(w for t, w in enumerate(weights) if t in models)
            absent = sum(w for t, w in enumerate(weights) if t not in models)
            if conf_type == "box_and_model_avg":
                score = score * n / weight * present / sum(weights)
            elif conf_type == "absent_model_aware_avg":
                score = score * n / (weight + absent)
            elif conf_type == "max":
                score = score / max(weights)
            else:
                score = score * (n if allows_overflow else min(len(weights), n)) / sum(weights)
            fused.append((box, score, label))
    return _sorted(fused, boxes_list[0].dtype)


def non_maximum_weighted(
    boxes_list: Sequence[Tensor],
    scores_list: Sequence[Tensor],
    labels_list: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> Fused:
    """See :func:`d2proj.ops.non_maximum_weighted`; tensors of one dtype only."""
    weights = [1.0] * len(boxes_list) if weights is None else weights
    weights = [weight / max(weights) for weight in weights]
    by_label = _members(boxes_list, scores_list, labels_list, weights, skip_box_thr)
    fused = []
    for label, members in by_label.items():
        for box, inside in _clusters(members, iou_thr, follow=False):
            mean = _mean(inside, [m[1] * _iou(m[0], box) for m in inside])
            fused.append((mean, _float32(inside[0][1]), label))
    return _sorted(fused, boxes_list[0].dtype)
