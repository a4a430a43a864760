"""nms, batched_nms and nms_padded, against torchvision."""

from collections.abc import Iterator

import torch
import torchvision

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    no_synchronisation,
    random_rois,
    size_of,
)
from d2proj import ops
from d2proj.utils import testing
from d2proj.utils.testing import FLOATING


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Both nms and batched_nms (80 classes): random boxes and the extremes, against torchvision.

    torchvision's nms is quadratic: 100 000 boxes of one class would take it a minute a call, so
    that row compares with its batched_nms of 80 classes.
    """
    sizes = (1000,) if quick else (10, 100, 1000, 5000, 20_000, 100_000)
    sets = {f"{n} random boxes": random_rois(n, 1, 800)[:, 1:] for n in sizes}
    if not quick:
        n = torch.arange(20_000)
        corner = torch.stack([n % 200, n // 200], 1) * 20.0
        sets["20000 disjoint boxes"] = torch.cat([corner, corner + 10], 1)
        sets["20000 equal boxes"] = torch.tensor([[10.0, 10, 60, 60]]).repeat(len(n), 1)
        sets["20000 tiny boxes"] = random_rois(len(n), 1, 800, 0.5, 3)[:, 1:]
        sets["20000 huge boxes"] = random_rois(len(n), 1, 800, 600, 800)[:, 1:]
    for name, boxes in sets.items():
        count = len(boxes)
        scores, idxs = torch.rand(count), torch.randint(80, (count,))
        classes = (boxes, scores, idxs, 0.7)
        moved = size_of(boxes, scores, ops.nms(boxes, scores, 0.7))
        if count < 100_000:
            peer = (torchvision.ops.nms, (boxes, scores, 0.7), "torchvision")
        else:
            peer = (torchvision.ops.batched_nms, classes, "torchvision, 80 classes")
        yield Case(
            f"nms: {name}",
            lambda a=(boxes, scores, 0.7): ops.nms(*a),
            lambda f=peer[0], a=peer[1]: f(*a),
            peer[2],
            moved,
        )
        if name.endswith("random boxes"):
            yield Case(
                f"batched_nms, 80 classes: {name}",
                lambda a=classes: ops.batched_nms(*a),
                lambda a=classes: torchvision.ops.batched_nms(*a),
                "torchvision",
                moved + size_of(idxs),
            )


def memory_cases() -> Iterator[MemoryCase]:
    """About 60 bytes a box; an n x n mask of bits would take 50 MB here."""
    boxes, scores = random_rois(20_000, 1, 800)[:, 1:], torch.rand(20_000)
    yield MemoryCase("nms", lambda: ops.nms(boxes, scores, 0.7), 20_000 * 64)


def gpu_checks() -> Iterator[Check]:
    """Keep lists equal to the CPU's, with ties, NaN and classes; sizes about the chunk of 2048."""
    g = torch.Generator().manual_seed(0)
    for count in (0, 1, 64, 65, 1000, 2048, 2049, 20_000):
        for dtype in FLOATING:
            boxes = testing.random_rois(count, 1, 800, generator=g)[:, 1:]
            boxes = boxes.double() if dtype == torch.float64 else boxes
            scores = torch.rand(count, generator=g).to(dtype)
            boxes[::97, 1], scores[::89] = float("nan"), float("nan")
            classes = torch.randint(20, (count,), generator=g) - 3
            for idxs in (None, classes):
                device_idxs = None if idxs is None else idxs.cuda()
                for threshold in (0.3, 0.7):
                    name = f"nms {count} {str(dtype)[6:]} classes={idxs is not None} {threshold}"
                    cpu, _ = ops.nms_padded(boxes, scores, threshold, idxs)
                    device_boxes, device_scores = boxes.cuda(), scores.cuda()
                    with no_synchronisation():
                        got, _ = ops.nms_padded(device_boxes, device_scores, threshold, device_idxs)
                    yield name, difference(got, cpu), 0.0


def gpu_times() -> Iterator[Timing]:
    """Random boxes as in specs/ops.md; with the length read back as torchvision does, and not."""
    g = torch.Generator().manual_seed(0)
    for count in (1000, 5000, 20_000):
        sides = torch.rand(count, 2, generator=g) * 292 + 8
        corner = torch.rand(count, 2, generator=g) * (800 - sides)
        boxes = torch.cat([corner, corner + sides], 1).cuda()
        scores = torch.rand(count, generator=g).cuda()
        idxs = torch.randint(80, (count,), generator=g).cuda()
        moved = count * 28
        plain, classes = (boxes, scores, 0.7), (boxes, scores, idxs, 0.7)
        for name, ours in (("nms", ops.nms), ("nms_padded", ops.nms_padded)):
            yield (
                f"{name} {count}",
                lambda f=ours, a=plain: f(*a),
                lambda a=plain: torchvision.ops.nms(*a),
                moved,
            )
        yield (
            f"batched_nms {count}, 80 classes",
            lambda a=classes: ops.batched_nms(*a),
            lambda a=classes: torchvision.ops.batched_nms(*a),
            moved,
        )
