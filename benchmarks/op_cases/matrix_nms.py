"""matrix_nms against SOLOv2's code on a matrix of IoUs from torchvision."""

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.op_cases.common import Case, Check, MemoryCase, Timing, difference, size_of
from benchmarks.op_cases.soft_nms import scored
from d2proj import ops


def matrix(boxes: Tensor, scores: Tensor, idxs: Tensor, method: str) -> Tensor:
    """The decayed scores above 0.05, with n x n matrices."""
    scores, order = scores.sort(descending=True)
    boxes, idxs = boxes[order], idxs[order]
    iou = (torchvision.ops.box_iou(boxes, boxes) * (idxs == idxs[:, None])).triu(1)
    most = iou.max(0).values[:, None]
    if method == "linear":
        decay = ((1 - iou) / (1 - most)).min(0).values
    else:
        decay = (torch.exp(-2 * iou**2) / torch.exp(-2 * most**2)).min(0).values
    scores = scores * decay
    return scores[scores >= 0.05]


def cpu_cases(quick: bool) -> Iterator[Case]:
    """One class and 80."""
    for count in (1000,) if quick else (10, 100, 1000, 5000):
        boxes, scores = scored(count)
        for classes in (1, 80):
            for method in ("gaussian", "linear"):
                arguments = (boxes, scores, torch.randint(classes, (count,)), method)
                yield Case(
                    f"matrix_nms {method}: {count} boxes, {classes} classes",
                    lambda a=arguments: ops.matrix_nms(*a),
                    lambda a=arguments: matrix(*a),
                    "torch matrix",
                    size_of(boxes, scores, *ops.matrix_nms(*arguments)),
                )


def memory_cases() -> Iterator[MemoryCase]:
    """At most 160 bytes a box."""
    boxes, scores = scored(20_000)
    yield MemoryCase("matrix_nms", lambda: ops.matrix_nms(boxes, scores), 20_000 * 160)


def gpu_checks() -> Iterator[Check]:
    """The CPU's result to the bit."""
    for count in (0, 1, 257, 6000):
        boxes, scores = scored(count)
        for method in ("gaussian", "linear"):
            for idxs in (None, torch.randint(20, (count,)) - 3):
                device_idxs = None if idxs is None else idxs.cuda()
                got = ops.matrix_nms(boxes.cuda(), scores.cuda(), device_idxs, method)
                expected = ops.matrix_nms(boxes, scores, idxs, method)
                for part, a, b in zip(("dets", "keep"), got, expected, strict=True):
                    name = f"matrix_nms {method} {count} classes={idxs is not None} {part}"
                    yield name, difference(a, b), 0.0


def gpu_times() -> Iterator[Timing]:
    """One class and 80, against the matrices."""
    for count in (1000, 5000, 20_000):
        boxes, scores = (t.cuda() for t in scored(count))
        for classes in (1, 80):
            arguments = (boxes, scores, torch.randint(classes, (count,)).cuda(), "gaussian")
            yield (
                f"matrix_nms {count}, {classes} classes",
                lambda a=arguments: ops.matrix_nms(*a),
                lambda a=arguments: matrix(*a),
                count * 48,
            )
