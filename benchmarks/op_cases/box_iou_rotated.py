"""box_iou_rotated, against Detectron2's compiled op where that can be imported."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    no_synchronisation,
    size_of,
)
from d2proj import ops

try:
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated
except ImportError:  # then nothing is timed
    pairwise_iou_rotated = None


def rotated_boxes(count: int, low: float = 8, high: float = 300, size: float = 800) -> Tensor:
    """(count, 5) with sides of ``low`` to ``high``, centres in a ``size`` square, any angle."""
    sides = torch.rand(count, 2) * (high - low) + low
    return torch.cat([torch.rand(count, 2) * size, sides, torch.rand(count, 1) * 360], 1)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Boxes of which one pair in seven overlaps, few do, or all."""
    if pairwise_iou_rotated is None:
        return
    shapes = [(200, 200, 8, 300), (1, 1, 8, 300), (1, 1000, 8, 300), (1000, 1, 8, 300)]
    shapes += [(10, 10, 8, 300), (1000, 1000, 8, 300), (1000, 1000, 8, 30), (300, 300, 600, 800)]
    for n, m, low, high in shapes[:1] if quick else shapes:
        boxes1, boxes2 = rotated_boxes(n, low, high), rotated_boxes(m, low, high)
        yield Case(
            f"box_iou_rotated: {n} x {m} boxes, sides {low}-{high} in 800",
            lambda a=(boxes1, boxes2): ops.box_iou_rotated(*a),
            lambda a=(boxes1, boxes2): pairwise_iou_rotated(*a),
            "Detectron2",
            size_of(boxes1, boxes2) + 4 * n * m,
        )


def memory_cases() -> Iterator[MemoryCase]:
    """36 bytes for each of boxes2, and a little."""
    boxes = rotated_boxes(2000)
    yield MemoryCase("box_iou_rotated", lambda: ops.box_iou_rotated(boxes, boxes), 88_000)


def gpu_checks() -> Iterator[Check]:
    """Bit for bit the CPU's."""
    for n, m in ((0, 5), (1, 1), (17, 130), (700, 900)):
        for dtype in (torch.float32, torch.float64):
            boxes1, boxes2 = rotated_boxes(n).to(dtype), rotated_boxes(m).to(dtype)
            boxes1[::13, 2], boxes2[::17, 4] = float("nan"), float("inf")
            device = boxes1.cuda(), boxes2.cuda()
            with no_synchronisation():
                got = ops.box_iou_rotated(*device)
            expected = ops.box_iou_rotated(boxes1, boxes2)
            yield f"box_iou_rotated {n} x {m} {str(dtype)[6:]}", difference(got, expected), 0.0


def gpu_times() -> Iterator[Timing]:
    """Against Detectron2's CUDA kernel, if it was built with one."""
    if pairwise_iou_rotated is None:
        return
    for n, m in ((1000, 1000), (5000, 5000)):
        boxes1, boxes2 = rotated_boxes(n).cuda(), rotated_boxes(m).cuda()
        yield (
            f"box_iou_rotated {n} x {m}",
            lambda a=(boxes1, boxes2): ops.box_iou_rotated(*a),
            lambda a=(boxes1, boxes2): pairwise_iou_rotated(*a),
            size_of(boxes1, boxes2) + 4 * n * m,
        )
