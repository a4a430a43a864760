"""diou_nms against a greedy loop over torchvision's DIoU."""

from collections.abc import Iterator

import torchvision
from torch import Tensor

from benchmarks.op_cases.common import Case, Check, MemoryCase, Timing, difference, size_of
from benchmarks.op_cases.soft_nms import scored
from d2proj import ops


def loop(boxes: Tensor, scores: Tensor, threshold: float) -> list[Tensor]:
    """The usual torch form: the best box against all that are left, a step."""
    left = scores.argsort(descending=True)
    kept = []
    while len(left):
        kept.append(left[0])
        diou = torchvision.ops.distance_box_iou(boxes[left[:1]], boxes[left[1:]])[0]
        left = left[1:][diou <= threshold]
    return kept


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Random boxes, threshold 0.5."""
    for count in (1000,) if quick else (10, 100, 1000, 5000):
        boxes, scores = scored(count)
        yield Case(
            f"diou_nms: {count} boxes",
            lambda a=(boxes, scores, 0.5): ops.diou_nms(*a),
            lambda a=(boxes, scores, 0.5): loop(*a),
            "torch loop",
            size_of(boxes, scores, ops.diou_nms(boxes, scores, 0.5)),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """As nms."""
    boxes, scores = scored(20_000)
    yield MemoryCase("diou_nms", lambda: ops.diou_nms(boxes, scores, 0.7), 20_000 * 64)


def gpu_checks() -> Iterator[Check]:
    """The CPU's keep lists; with beta 1, for powers differ from one library to the next."""
    for count in (0, 1, 2049, 20_000):
        boxes, scores = scored(count)
        got = ops.diou_nms(boxes.cuda(), scores.cuda(), 0.5)
        yield f"diou_nms {count}", difference(got, ops.diou_nms(boxes, scores, 0.5)), 0.0


def gpu_times() -> Iterator[Timing]:
    """The criterion's price over plain nms."""
    for count in (1000, 5000, 20_000):
        boxes, scores = (t.cuda() for t in scored(count))
        yield (
            f"diou_nms {count}, peer: torchvision's nms",
            lambda a=(boxes, scores, 0.7): ops.diou_nms(*a),
            lambda a=(boxes, scores, 0.7): torchvision.ops.nms(*a),
            count * 28,
        )
