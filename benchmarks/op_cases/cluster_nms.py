"""cluster_nms against its authors' iteration on a matrix of IoUs from torchvision."""

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.op_cases.common import Case, Check, MemoryCase, Timing, difference, size_of
from benchmarks.op_cases.soft_nms import scored
from d2proj import ops

VARIANTS = ("plain", "score_penalty", "distance", "weighted")


def matrix(boxes: Tensor, scores: Tensor, threshold: float, variant: str) -> tuple[Tensor, Tensor]:
    """Boxes and scores of what is kept, with n x n matrices."""
    scores, order = scores.sort(descending=True)
    boxes = boxes[order]
    distance = variant == "distance"
    pairwise = torchvision.ops.distance_box_iou if distance else torchvision.ops.box_iou
    x = pairwise(boxes, boxes).triu(1)
    c = x
    for _ in range(len(boxes)):
        previous = c
        c = x * (previous.max(0).values <= threshold)[:, None]
        if torch.equal(c, previous):
            break
    keep = c.max(0).values <= threshold
    if variant == "score_penalty":
        scores = torch.exp(-(c**2) / 0.2).prod(0) * scores
        keep = scores > 0.01
    if variant == "weighted":
        weights = (c * (c > threshold) + torch.eye(len(boxes), device=boxes.device)) * scores
        boxes = weights @ boxes / weights.sum(1, keepdim=True)
    return boxes[keep], scores[keep]


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Random boxes, threshold 0.5; the matrices need seconds for more than 1 000."""
    for count in (1000,) if quick else (10, 100, 1000):
        boxes, scores = scored(count)
        for variant in VARIANTS:
            arguments = (boxes, scores, 0.5, variant)
            yield Case(
                f"cluster_nms {variant}: {count} boxes",
                lambda a=arguments: ops.cluster_nms(*a),
                lambda a=arguments: matrix(*a),
                "torch matrix",
                size_of(boxes, scores, *ops.cluster_nms(*arguments)),
            )


def memory_cases() -> Iterator[MemoryCase]:
    """At most 200 bytes a box."""
    boxes, scores = scored(20_000)
    for variant in VARIANTS:
        yield MemoryCase(
            f"cluster_nms {variant}",
            lambda v=variant: ops.cluster_nms(boxes, scores, 0.5, v),
            20_000 * 200,
        )


def gpu_checks() -> Iterator[Check]:
    """Against the CPU; the sums of two variants are taken in another order there, in float64."""
    for count in (0, 1, 257, 6000):
        boxes, scores = scored(count)
        for variant in VARIANTS:
            dets, keep = ops.cluster_nms(boxes.cuda(), scores.cuda(), 0.5, variant)
            expected, kept = ops.cluster_nms(boxes, scores, 0.5, variant)
            yield f"cluster_nms {variant} {count} keep", difference(keep, kept), 0.0
            yield f"cluster_nms {variant} {count} dets", difference(dets, expected), 1e-4


def gpu_times() -> Iterator[Timing]:
    """Against the matrices."""
    for count in (1000, 5000):
        boxes, scores = (t.cuda() for t in scored(count))
        for variant in VARIANTS:
            yield (
                f"cluster_nms {variant} {count}",
                lambda a=(boxes, scores, 0.5, variant): ops.cluster_nms(*a),
                lambda a=(boxes, scores, 0.5, variant): matrix(*a),
                count * 48,
            )
