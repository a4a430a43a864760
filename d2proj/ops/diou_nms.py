"""DIoU-NMS (Zheng et al., AAAI 2020): functional forms and registrations."""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops.nms import _as_int64, _check, _kept, _register


def diou_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, beta: float = 1.0) -> Tensor:
    """:func:`d2proj.ops.nms` that spares boxes whose centres are apart.

    A box is dropped if IoU - (d^2 / c^2)^beta with one kept before it is strictly above the
    threshold: d is the distance of the centres, c the diagonal of the smallest box around both.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2, as in :func:`d2proj.ops.nms`.
        scores: (N,), any floating dtype. Equal scores rank by lower index first, NaN ranks last.
        iou_threshold: Drop a box above this.
        beta: At least 0. 1 in the paper, 0.6 in darknet; the smaller, the more is spared.

    Returns:
        (K,) int64, indices of the kept boxes by descending score.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype, device or range.
    """
    _ext.require()
    return torch.ops.d2proj.diou_nms(boxes, scores, None, iou_threshold, beta)


def batched_diou_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, beta: float = 1.0
) -> Tensor:
    """:func:`diou_nms` within each class: boxes of different ``idxs`` do not suppress each other.

    Args:
        boxes: (N, 4), as in :func:`diou_nms`.
        scores: (N,), as in :func:`diou_nms`.
        idxs: (N,) integers, the class (or image, or level) of each box; any values.
        iou_threshold: Drop a box above this.
        beta: At least 0, as in :func:`diou_nms`.

    Returns:
        (K,) int64, indices of the kept boxes of all classes by descending score.
    """
    _ext.require()
    return torch.ops.d2proj.diou_nms(boxes, scores, _as_int64(idxs), iou_threshold, beta)


def _fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, beta: float
) -> Tensor:
    _check("diou_nms" if idxs is None else "batched_diou_nms", boxes, scores, idxs)
    return _kept(boxes)


if _ext.AVAILABLE:
    _register("diou_nms", _fake)
