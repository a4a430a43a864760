"""Non-maximum suppression: functional forms and registrations.

The greedy algorithm of Felzenszwalb et al., TPAMI 2010, section 6.2, with torchvision's signatures
and results. What is promised beyond them is in ``docs/ops/nms.md``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import _LIBRARY, refuse_vmap


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the boxes that no better box overlaps too much.

    Boxes are taken by descending score; a box is dropped if its IoU with one kept before it is
    strictly above the threshold. Signature and result are ``torchvision.ops.nms``'s. Not
    differentiable: the result is indices.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2 with x1 < x2 and y1 < y2, any unit; float32 or float64
            (float16 and bfloat16 are raised to float32). A box with a NaN overlaps nothing.
        scores: (N,), any floating dtype. Equal scores rank by lower index first, NaN ranks last.
        iou_threshold: Drop a box above this IoU.

    Returns:
        (K,) int64, indices of the kept boxes by descending score.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    return torch.ops.d2proj.nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each class: boxes of different ``idxs`` do not suppress each other.

    As ``torchvision.ops.batched_nms``, but boxes are never moved apart by an offset, so the
    result is exact for coordinates of any size and sign.

    Args:
        boxes: (N, 4), as in :func:`nms`.
        scores: (N,), as in :func:`nms`.
        idxs: (N,) integers, the class (or image, or level) of each box; any values.
        iou_threshold: Drop a box above this IoU with a better one of its class.

    Returns:
        (K,) int64, indices of the kept boxes of all classes by descending score.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device.
    """
    _ext.require()
    return torch.ops.d2proj.batched_nms(boxes, scores, _as_int64(idxs), iou_threshold)


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`nms` (or, with ``idxs``, :func:`batched_nms`) with a result of fixed size.

    The number of kept boxes stays on the device: on CUDA nothing waits for the GPU, which
    :func:`nms` must do once, to size its result.

    Returns:
        keep: (N,) int64, the indices that :func:`nms` returns, then -1.
        count: () int64, how many are valid.
    """
    _ext.require()
    idxs = None if idxs is None else _as_int64(idxs)
    return torch.ops.d2proj._nms_padded(boxes, scores, idxs, iou_threshold)


def _choice(op: str, name: str, value: str, options: tuple[str, ...]) -> int:
    """The number by which a kernel knows the option."""
    if value not in options:
        raise ValueError(f"{op}: {name} must be one of {', '.join(options)}, got {value!r}")
    return options.index(value)


def _as_int64(idxs: Tensor) -> Tensor:
    """Integers of another width as int64; what is no integer is left for the op to refuse."""
    narrow = idxs.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return idxs.long() if narrow else idxs


def _check(op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None = None) -> None:
    """What the kernels check, for shapes that may be symbolic."""
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        lambda: f"{op}: boxes must have shape (N, 4), got {tuple(boxes.shape)}",
    )
    _check_column(op, "scores", scores, boxes)
    if idxs is not None:
        _check_column(op, "idxs", idxs, boxes)


def _check_column(op: str, name: str, column: Tensor, boxes: Tensor) -> None:
    torch._check(
        column.dim() == 1 and column.shape[0] == boxes.shape[0],
        lambda: f"{op}: {name} must have shape (N,) as boxes has, got {tuple(column.shape)}",
    )


def _kept(boxes: Tensor) -> Tensor:
    """A result whose length is known only when the kernel has run."""
    size = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(size, dtype=torch.int64)


def _rescored(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes with new scores and their indices, as many as the kernel will find."""
    size = torch.library.get_ctx().new_dynamic_size()
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    dets = boxes.new_empty((size, 5), dtype=torch.float64 if wide else torch.float32)
    return dets, boxes.new_empty(size, dtype=torch.int64)


def _register(name: str, fake: Callable[..., Any]) -> None:
    """What ops of this family register: no gradient, so no autograd."""
    for device in ("cpu", "cuda"):
        # Boxes in half precision lose whole pixels: under autocast too they stay in float32.
        torch.library.register_autocast(f"d2proj::{name}", device, torch.float32)
    torch.library.register_fake(f"d2proj::{name}", fake)
    # Results, new scores too, carry no gradient; to ask for one is an error, not a warning.
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    refuse_vmap(name)


def _nms_fake(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    _check("nms", boxes, scores)
    return _kept(boxes)


def _batched_nms_fake(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    _check("batched_nms", boxes, scores, idxs)
    return _kept(boxes)


def _nms_padded_fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    _check("nms_padded", boxes, scores, idxs)
    keep = boxes.new_empty(boxes.shape[0], dtype=torch.int64)
    return keep, boxes.new_empty((), dtype=torch.int64)


if _ext.AVAILABLE:
    _register("nms", _nms_fake)
    _register("batched_nms", _batched_nms_fake)
    _register("_nms_padded", _nms_padded_fake)
