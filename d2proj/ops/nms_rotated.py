"""Non-maximum suppression of rotated boxes: functional forms and registrations.

Detectron2's signatures; what is promised beyond them is in ``docs/ops/nms_rotated.md``.
"""

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import refuse_vmap
from d2proj.ops.nms import _as_int64, _check_column, _kept


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the rotated boxes that no better one overlaps too much.

    Boxes are taken by descending score; a box is dropped if its IoU (:func:`box_iou_rotated`) with
    one kept before it is strictly above the threshold. Signature and result are
    ``detectron2.layers.nms_rotated``'s. Not differentiable: the result is indices.

    Args:
        boxes: (N, 5) of centre x, centre y, width, height, degrees counter-clockwise; float32 or
            float64 (float16 and bfloat16 are raised to float32). A box with a NaN overlaps nothing.
        scores: (N,), any floating dtype. Equal scores rank by lower index first, NaN ranks last.
        iou_threshold: Drop a box above this IoU.

    Returns:
        (K,) int64, indices of the kept boxes by descending score.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    return torch.ops.d2proj.nms_rotated(boxes, scores, iou_threshold)


def batched_nms_rotated(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """:func:`nms_rotated` within each class: boxes of different ``idxs`` do not meet.

    As ``detectron2.layers.batched_nms_rotated``, but boxes are never moved apart by an offset, so
    the result is exact for coordinates of any size and sign, and float64 stays float64.

    Args:
        boxes: (N, 5), as in :func:`nms_rotated`.
        scores: (N,), as in :func:`nms_rotated`.
        idxs: (N,) integers, the class (or image, or level) of each box; any values.
        iou_threshold: Drop a box above this IoU with a better one of its class.

    Returns:
        (K,) int64, indices of the kept boxes of all classes by descending score.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    return torch.ops.d2proj.batched_nms_rotated(boxes, scores, _as_int64(idxs), iou_threshold)


def _check(op: str, boxes: Tensor, scores: Tensor) -> None:
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 5,
        lambda: f"{op}: boxes must have shape (N, 5), got {tuple(boxes.shape)}",
    )
    _check_column(op, "scores", scores, boxes)


def _nms_fake(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    _check("nms_rotated", boxes, scores)
    return _kept(boxes)


def _batched_nms_fake(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    _check("batched_nms_rotated", boxes, scores)
    _check_column("batched_nms_rotated", "idxs", idxs, boxes)
    return _kept(boxes)


if _ext.AVAILABLE:
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast("d2proj::nms_rotated", _device, torch.float32)
        torch.library.register_autocast("d2proj::batched_nms_rotated", _device, torch.float32)
    torch.library.register_fake("d2proj::nms_rotated", _nms_fake)
    torch.library.register_fake("d2proj::batched_nms_rotated", _batched_nms_fake)
    refuse_vmap("nms_rotated", "batched_nms_rotated")
