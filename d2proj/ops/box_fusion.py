"""Merging the boxes of several models: weighted boxes fusion and non-maximum weighted.

The signatures and the arithmetic of the package ensemble-boxes; differences are in
``docs/ops/box_fusion.md``.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2proj.ops import _ext
from d2proj.ops._common import refuse_vmap, register_autocast
from d2proj.ops.nms import _check_column

#: A torch tensor, a numpy array or nested lists of numbers.
ArrayLike = Any

#: How the score of a fused box is made, in the order of the kernels' enum.
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def weighted_boxes_fusion(
    boxes_list: Sequence[ArrayLike],
    scores_list: Sequence[ArrayLike],
    labels_list: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace boxes of several models that agree by their mean, weighted by score.

    Solovyev, Wang, Gabruseva: *Weighted boxes fusion*, Image and Vision Computing 2021. Signature
    and result are ``ensemble_boxes.weighted_boxes_fusion``'s. Not differentiable.

    Args:
        boxes_list: For each model, its (n, 4) of x1, y1, x2, y2 divided by the image's width and
            height; beyond [0, 1] they are clipped, with one warning (on the CPU). Tensors, arrays
            or lists; corners in the wrong order are swapped, boxes without area dropped.
        scores_list: For each model, its (n,) scores.
        labels_list: For each model, its (n,) class numbers; only boxes of one class are fused.
        weights: A weight for each model; 1 each if None.
        iou_thr: A box joins a fused box that it overlaps by more than this.
        skip_box_thr: Boxes that score below it, before weighting, are dropped; so are NaN scores.
        conf_type: Score of a fused box: ``avg``, ``max``, ``box_and_model_avg`` or
            ``absent_model_aware_avg``.
        allows_overflow: For ``avg``: let more boxes than models raise a score above 1.

    Returns:
        boxes: (K, 4), by descending score.
        scores: (K,).
        labels: (K,) int64. Boxes and scores are float64 if any input is (lists are), else float32.

    Raises:
        ValueError: The lists do not fit together, or the conf_type is none of these.
        RuntimeError: A tensor has the wrong shape, dtype or device.
    """
    _ext.require()
    if conf_type not in CONF_TYPES:
        raise ValueError(
            f"weighted_boxes_fusion: conf_type must be one of {CONF_TYPES}, got {conf_type!r}"
        )
    inputs = _join("weighted_boxes_fusion", boxes_list, scores_list, labels_list, weights)
    confidence = CONF_TYPES.index(conf_type)
    fused = torch.ops.d2proj.weighted_boxes_fusion(
        *inputs, iou_thr, skip_box_thr, confidence, allows_overflow
    )
    _warn_of_clipping("weighted_boxes_fusion", inputs[0])
    return fused


def non_maximum_weighted(
    boxes_list: Sequence[ArrayLike],
    scores_list: Sequence[ArrayLike],
    labels_list: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    iou_thr: float = 0.55,
    skip_box_thr: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace each best box by the mean of the boxes that overlap it, weighted by score and IoU.

    Zhou et al.: *CAD*, ICCV workshops 2017. Signature and result are
    ``ensemble_boxes.non_maximum_weighted``'s. Not differentiable.

    Args:
        boxes_list: As in :func:`weighted_boxes_fusion`, like the arguments that follow.
        scores_list: For each model, its (n,) scores.
        labels_list: For each model, its (n,) class numbers.
        weights: A weight for each model, divided by the largest of them; 1 each if None.
        iou_thr: A box joins the best box that it overlaps by more than this.
        skip_box_thr: Boxes that score below it, before weighting, are dropped.

    Returns:
        boxes: (K, 4), by descending score; scores: (K,), each that of the best box; labels: (K,)
        int64.

    Raises:
        ValueError: The lists do not fit together, or no weight is above 0.
        RuntimeError: A tensor has the wrong shape, dtype or device.
    """
    _ext.require()
    if weights is not None and len(weights) > 0:
        largest = max(float(weight) for weight in weights)
        if not largest > 0:
            raise ValueError(
                f"non_maximum_weighted: weights must have one above 0, got {list(weights)}"
            )
        weights = [float(weight) / largest for weight in weights]
    inputs = _join("non_maximum_weighted", boxes_list, scores_list, labels_list, weights)
    fused = torch.ops.d2proj.non_maximum_weighted(*inputs, iou_thr, skip_box_thr)
    _warn_of_clipping("non_maximum_weighted", inputs[0])
    return fused


def _join(
    op: str,
    boxes_list: Sequence[ArrayLike],
    scores_list: Sequence[ArrayLike],
    labels_list: Sequence[ArrayLike],
    weights: Sequence[float] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, labels and models of all boxes, (N, ...), and the weights of the models."""
    count = len(boxes_list)
    for name, other in (
        ("scores_list", scores_list),
        ("labels_list", labels_list),
        ("weights", weights),
    ):
        if other is not None and len(other) != count:
            raise ValueError(
                f"{op}: {name} must have an entry for each of the {count} models, got {len(other)}"
            )
    if count == 0:
        empty, none = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
        return empty.view(0, 4), empty, none, none, empty
    boxes = [_boxes(each) for each in boxes_list]
    scores = [_floating(each) for each in scores_list]
    labels = [torch.as_tensor(each).long() for each in labels_list]
    for i in range(count):
        for name, column in (("scores_list", scores[i]), ("labels_list", labels[i])):
            if len(column) != len(boxes[i]):
                raise ValueError(
                    f"{op}: {name}[{i}] must have {len(boxes[i])} entries as boxes_list[{i}] has, "
                    f"got {len(column)}"
                )
    # Written on the device: nothing is copied to it, which would wait.
    numbered = [label.new_full((len(label),), i) for i, label in enumerate(labels)]
    models = numbered[0] if count == 1 else torch.cat(numbered)
    numbers = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if models.is_cuda:
        one = torch.ones(1, dtype=torch.float64, device=models.device)
        each = torch.cat([one * number for number in numbers])
    else:
        each = torch.tensor(numbers, dtype=torch.float64)
    if count == 1:
        return boxes[0], scores[0], labels[0], models, each
    return torch.cat(boxes), torch.cat(scores), torch.cat(labels), models, each


def _floating(values: ArrayLike) -> Tensor:
    """Numbers as a floating tensor without a gradient; Python's own are float64."""
    if isinstance(values, Tensor):
        return values.detach() if values.requires_grad else values
    tensor = torch.as_tensor(values, dtype=None if hasattr(values, "dtype") else torch.float64)
    return tensor if tensor.is_floating_point() else tensor.double()


def _boxes(values: ArrayLike) -> Tensor:
    """(n, 4); no boxes may come as an empty list."""
    boxes = _floating(values)
    return boxes.reshape(0, 4) if boxes.dim() == 1 and len(boxes) == 0 else boxes


def _warn_of_clipping(op: str, boxes: Tensor) -> None:
    """On the CPU only: elsewhere looking at the values would wait for the device."""
    if not boxes.is_cpu or boxes.numel() == 0 or torch.compiler.is_compiling():
        return
    if boxes.min().item() < 0 or boxes.max().item() > 1:
        warnings.warn(
            f"{op}: boxes reach beyond [0, 1] and were clipped; divide them by the image size",
            stacklevel=3,
        )


def _check(op: str, boxes: Tensor, columns: dict[str, Tensor], weights: Tensor) -> None:
    torch._check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        lambda: f"{op}: boxes must have shape (N, 4), got {tuple(boxes.shape)}",
    )
    for name, column in columns.items():
        _check_column(op, name, column, boxes)
    torch._check(weights.dim() == 1, lambda: f"{op}: weights must have shape (T,)")


def _fused(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    dtype = torch.float64 if wide else torch.float32
    return (
        boxes.new_empty((size, 4), dtype=dtype),
        boxes.new_empty(size, dtype=dtype),
        labels.new_empty(size),
    )


def _wbf_fake(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: Tensor,
    iou_thr: float,
    skip_box_thr: float,
    conf_type: int,
    allows_overflow: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    columns = {"scores": scores, "labels": labels, "models": models}
    _check("weighted_boxes_fusion", boxes, columns, weights)
    return _fused(boxes, scores, labels)


def _nmw_fake(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: Tensor,
    iou_thr: float,
    skip_box_thr: float,
) -> tuple[Tensor, Tensor, Tensor]:
    columns = {"scores": scores, "labels": labels, "models": models}
    _check("non_maximum_weighted", boxes, columns, weights)
    return _fused(boxes, scores, labels)


if _ext.AVAILABLE:
    for _name, _fake in (("weighted_boxes_fusion", _wbf_fake), ("non_maximum_weighted", _nmw_fake)):
        torch.library.register_fake(f"d2proj::{_name}", _fake)
        register_autocast(_name, box_arguments=(0, 1))
        refuse_vmap(_name)
