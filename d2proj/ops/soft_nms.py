"""Soft-NMS (Bodla et al., ICCV 2017): functional forms and registrations.

mmcv's signature and results; the differences are in ``docs/ops/soft_nms.md``.
"""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops.nms import _as_int64, _check, _choice, _register, _rescored

METHODS = ("linear", "gaussian", "hard")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that better boxes overlap, instead of dropping them.

    Again and again the best box left is taken, and the score of each box that is left is multiplied
    by a weight of its IoU with the one taken. Not differentiable.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2 with x1 < x2 and y1 < y2, any unit; float32 or float64
            (float16 and bfloat16 are raised to float32). A box with a NaN overlaps nothing.
        scores: (N,), any floating dtype. Of equal scores the lower index is taken first. Scores
            that are not above zero are not changed; NaN comes last.
        iou_threshold: ``linear`` and ``hard`` act at this IoU and above.
        sigma: Of ``gaussian``; the smaller, the steeper.
        min_score: A box is dropped when its score falls below this.
        method: ``linear``: weight 1 - IoU; ``gaussian``: exp(-IoU^2 / sigma) at any IoU; ``hard``:
            the box is dropped.

    Returns:
        dets: (K, 5), boxes and lowered scores, by descending score; float64 if boxes or scores are,
            else float32.
        keep: (K,) int64, their indices.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype, device or range.
        ValueError: There is no such method.
    """
    _ext.require()
    number = _choice("soft_nms", "method", method, METHODS)
    return torch.ops.d2proj.soft_nms(boxes, scores, None, iou_threshold, sigma, min_score, number)


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
) -> tuple[Tensor, Tensor]:
    """:func:`soft_nms` within each class: boxes of different ``idxs`` do not touch each other.

    Args:
        boxes: (N, 4), as in :func:`soft_nms`.
        scores: (N,), as in :func:`soft_nms`.
        idxs: (N,) integers, the class (or image, or level) of each box; any values.
        iou_threshold: ``linear`` and ``hard`` act at this IoU and above.
        sigma: Of ``gaussian``; the smaller, the steeper.
        min_score: A box is dropped when its score falls below this.
        method: ``linear``, ``gaussian`` or ``hard``, as in :func:`soft_nms`.

    Returns:
        dets: (K, 5), of all classes, by descending score.
        keep: (K,) int64, their indices.
    """
    _ext.require()
    number = _choice("batched_soft_nms", "method", method, METHODS)
    idxs = _as_int64(idxs)
    return torch.ops.d2proj.soft_nms(boxes, scores, idxs, iou_threshold, sigma, min_score, number)


def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    _check("soft_nms" if idxs is None else "batched_soft_nms", boxes, scores, idxs)
    return _rescored(boxes, scores)


if _ext.AVAILABLE:
    _register("soft_nms", _fake)
