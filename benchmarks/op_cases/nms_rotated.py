"""nms_rotated and batched_nms_rotated, against Detectron2's where that can be imported."""

from collections.abc import Iterator

import torch

from benchmarks.op_cases.box_iou_rotated import rotated_boxes
from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    size_of,
)
from d2proj import ops

try:
    import detectron2._C  # noqa: F401  (the embedded part of Detectron2 has layers, but no ops)
    from detectron2 import layers as peer
except ImportError:  # then nothing is timed
    peer = None


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Random boxes; Detectron2's op is quadratic, so that 2000 take it seconds."""
    if peer is None:
        return
    for count, threshold in (
        ((300, 0.5),)
        if quick
        else (
            (1, 0.5),
            (10, 0.5),
            (100, 0.5),
            (1000, 0.3),
            (1000, 0.7),
            (2000, 0.3),
        )
    ):
        boxes, scores = rotated_boxes(count), torch.rand(count)
        idxs = torch.randint(15, (count,))
        moved = size_of(boxes, scores, ops.nms_rotated(boxes, scores, threshold))
        yield Case(
            f"nms_rotated: {count} boxes, threshold {threshold}",
            lambda a=(boxes, scores, threshold): ops.nms_rotated(*a),
            lambda a=(boxes, scores, threshold): peer.nms_rotated(*a),
            "Detectron2",
            moved,
        )
        yield Case(
            f"batched_nms_rotated, 15 classes: {count} boxes, threshold {threshold}",
            lambda a=(boxes, scores, idxs, threshold): ops.batched_nms_rotated(*a),
            lambda a=(boxes, scores, idxs, threshold): peer.batched_nms_rotated(*a),
            "Detectron2",
            moved + size_of(idxs),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """About 100 bytes a box; an n x n mask of bits would take 50 MB here."""
    boxes, scores = rotated_boxes(20_000), torch.rand(20_000)
    yield MemoryCase("nms_rotated", lambda: ops.nms_rotated(boxes, scores, 0.3), 20_000 * 120)


def gpu_checks() -> Iterator[Check]:
    """Keep lists equal to the CPU's; sizes about the chunk of 2048."""
    for count in (0, 1, 64, 65, 2048, 2049, 10_000):
        for dtype in (torch.float32, torch.float64):
            boxes, scores = rotated_boxes(count).to(dtype), torch.rand(count)
            boxes[::97, 1], scores[::89] = float("nan"), float("nan")
            idxs = torch.randint(20, (count,)) - 3
            device = boxes.cuda(), scores.cuda(), idxs.cuda()
            for threshold in (0.3, 0.7):
                name = f"nms_rotated {count} {str(dtype)[6:]} {threshold}"
                got = ops.nms_rotated(*device[:2], threshold)
                yield name, difference(got, ops.nms_rotated(boxes, scores, threshold)), 0.0
                got = ops.batched_nms_rotated(*device, threshold)
                expected = ops.batched_nms_rotated(boxes, scores, idxs, threshold)
                yield f"batched {name}", difference(got, expected), 0.0


def gpu_times() -> Iterator[Timing]:
    """Against Detectron2's CUDA kernel, if it was built with one."""
    if peer is None:
        return
    for count in (1000, 5000, 20_000):
        boxes, scores = rotated_boxes(count).cuda(), torch.rand(count).cuda()
        yield (
            f"nms_rotated {count}",
            lambda a=(boxes, scores, 0.5): ops.nms_rotated(*a),
            lambda a=(boxes, scores, 0.5): peer.nms_rotated(*a),
            count * 32,
        )
