"""Cluster-NMS (Zheng et al., IEEE Trans. Cybernetics 2021; arXiv 2020): forms and registration."""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops.nms import _as_int64, _check, _choice, _register, _rescored

VARIANTS = ("plain", "score_penalty", "distance", "weighted")


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
    """Cluster-NMS: the kept boxes of greedy NMS, and what its variants make of them.

    Not differentiable.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2, as in :func:`d2proj.ops.nms`.
        scores: (N,), any floating dtype. Equal scores rank by lower index first, NaN ranks last.
        iou_threshold: A kept box drops worse ones above this IoU.
        variant: ``plain``: exactly the boxes that :func:`d2proj.ops.nms` keeps. ``distance``: those
            that :func:`d2proj.ops.diou_nms` keeps. ``weighted``: those of ``plain``, each moved to
            the mean of itself and all worse boxes above the threshold, weighted by IoU times score.
            ``score_penalty``: no box is dropped; each score is multiplied by exp(-IoU^2 / sigma)
            for every better box that ``plain`` keeps.
        beta: Of ``distance``.
        sigma: Of ``score_penalty``.
        min_score: Of ``score_penalty``: boxes whose new score is below this are dropped.

    Returns:
        dets: (K, 5), boxes and scores, by descending score; float64 if boxes or scores are, else
            float32.
        keep: (K,) int64, their indices.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype, device or range.
        ValueError: There is no such variant.
    """
    _ext.require()
    number = _choice("cluster_nms", "variant", variant, VARIANTS)
    return torch.ops.d2proj.cluster_nms(
        boxes, scores, None, iou_threshold, number, beta, sigma, min_score
    )


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
    """:func:`cluster_nms` within each class: boxes of different ``idxs`` do not touch each other.

    Args:
        boxes: (N, 4), as in :func:`cluster_nms`.
        scores: (N,), as in :func:`cluster_nms`.
        idxs: (N,) integers, the class (or image, or level) of each box; any values.
        iou_threshold: A kept box drops worse ones of its class above this IoU.
        variant: ``plain``, ``score_penalty``, ``distance`` or ``weighted``.
        beta: Of ``distance``.
        sigma: Of ``score_penalty``.
        min_score: Of ``score_penalty``: boxes whose new score is below this are dropped.

    Returns:
        dets: (K, 5), of all classes, by descending score.
        keep: (K,) int64, their indices.
    """
    _ext.require()
    number = _choice("batched_cluster_nms", "variant", variant, VARIANTS)
    return torch.ops.d2proj.cluster_nms(
        boxes, scores, _as_int64(idxs), iou_threshold, number, beta, sigma, min_score
    )


def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    variant: int,
    beta: float,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    _check("cluster_nms" if idxs is None else "batched_cluster_nms", boxes, scores, idxs)
    return _rescored(boxes, scores)


if _ext.AVAILABLE:
    _register("cluster_nms", _fake)
