"""Matrix NMS (SOLOv2, Wang et al., NeurIPS 2020) on boxes: functional form and registration."""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops.nms import _as_int64, _check, _choice, _register, _rescored

METHODS = ("gaussian", "linear")


def matrix_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None = None,
    method: str = "gaussian",
    sigma: float = 2.0,
    min_score: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Lower every score at once by how much better boxes of its class overlap the box.

    A better box counts the less, the more it is overlapped by a yet better one itself: that takes
    the place of soft-NMS's one box after another. Not differentiable.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2, as in :func:`d2proj.ops.nms`.
        scores: (N,), any floating dtype. Equal scores rank by lower index first, NaN ranks last.
        idxs: (N,) integers, the class of each box, any values; None: all of one class.
        method: ``gaussian``: exp(-sigma IoU^2); ``linear``: 1 - IoU.
        sigma: Of ``gaussian``; the larger, the steeper.
        min_score: A box whose lowered score is below this is dropped.

    Returns:
        dets: (K, 5), boxes and lowered scores, by descending score; float64 if boxes or scores are,
            else float32.
        keep: (K,) int64, their indices.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype, device or range.
        ValueError: There is no such method.
    """
    _ext.require()
    gaussian = _choice("matrix_nms", "method", method, METHODS) == 0
    idxs = None if idxs is None else _as_int64(idxs)
    return torch.ops.d2proj.matrix_nms(boxes, scores, idxs, gaussian, sigma, min_score)


def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    gaussian: bool,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    _check("matrix_nms", boxes, scores, idxs)
    return _rescored(boxes, scores)


if _ext.AVAILABLE:
    _register("matrix_nms", _fake)
