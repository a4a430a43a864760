"""soft_nms against OpenCV (whole coordinates) and a numpy loop."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    random_rois,
    size_of,
)
from d2proj import ops

try:
    from cv2 import dnn
except ImportError:
    dnn = None

METHODS = ("linear", "gaussian")


def scored(count: int, size: float = 800) -> tuple[Tensor, Tensor]:
    """Boxes with sides of 8 to 300 and scores, whole coordinates."""
    return random_rois(count, 1, size)[:, 1:].round(), torch.rand(count)


def loop(boxes: np.ndarray, scores: np.ndarray, method: str) -> int:
    """The usual numpy form: one box against all the others, a step; how many were taken."""
    boxes, scores = boxes.copy(), scores.copy()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    taken = 0
    while len(scores):
        best = scores.argmax()
        box, own = boxes[best], area[best]
        rest = np.arange(len(scores)) != best
        boxes, scores, area = boxes[rest], scores[rest], area[rest]
        low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
        inter = np.maximum(high - low, 0).prod(1)
        iou = inter / (own + area - inter)
        if method == "linear":
            scores = scores * np.where(iou >= 0.3, 1 - iou, 1)
        else:
            scores = scores * np.exp(-(iou * iou) / 0.5)
        left = scores >= 1e-3
        boxes, scores, area = boxes[left], scores[left], area[left]
        taken += 1
    return taken


def opencv(boxes: Tensor, scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """From tensors to tensors, as ours: it takes lists of rectangles in whole numbers."""
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).int()
    rects = [tuple(row) for row in sides.tolist()]
    new, keep = dnn.softNMSBoxes(rects, scores.tolist(), 1e-3, 0.3, 0, 0.5, number)
    keep = torch.from_numpy(keep.reshape(-1)).long()
    return torch.cat([boxes[keep], torch.from_numpy(new).reshape(-1, 1)], 1), keep


def cpu_cases(quick: bool) -> Iterator[Case]:
    """OpenCV's and the loop are quadratic: no peer beyond 5 000 boxes of one class."""
    for count in (1000,) if quick else (10, 100, 1000, 5000):
        boxes, scores = scored(count)
        for method in METHODS:
            arguments = (boxes, scores, 0.3, 0.5, 1e-3, method)
            moved = size_of(boxes, scores, *ops.soft_nms(*arguments))
            arrays = (boxes.numpy(), scores.numpy(), method)
            peers = {"numpy loop": lambda a=arrays: loop(*a)}
            if dnn is not None:
                number = 1 if method == "linear" else 2
                peers["OpenCV"] = lambda a=(boxes, scores, number): opencv(*a)
            for peer, call in peers.items():
                name = f"soft_nms {method}: {count} boxes, {peer}"
                yield Case(name, lambda a=arguments: ops.soft_nms(*a), call, peer, moved)
    if quick:
        return
    boxes, scores = scored(20_000)
    idxs = torch.randint(80, (20_000,))
    classes = [torch.nonzero(idxs == c)[:, 0] for c in range(80)]
    for method in METHODS:
        arguments = (boxes, scores, idxs, 0.3, 0.5, 1e-3, method)
        parts = [(boxes[w].numpy(), scores[w].numpy()) for w in classes]
        yield Case(
            f"batched_soft_nms {method}: 20000 boxes, 80 classes",
            lambda a=arguments: ops.batched_soft_nms(*a),
            lambda p=parts, m=method: [loop(b, s, m) for b, s in p],
            "numpy loop",
            size_of(boxes, scores, idxs, *ops.batched_soft_nms(*arguments)),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """At most 160 bytes a box."""
    boxes, scores = scored(20_000)
    for method in METHODS:
        yield MemoryCase(
            f"soft_nms {method}",
            lambda m=method: ops.soft_nms(boxes, scores, method=m),
            20_000 * 160,
        )


def gpu_checks() -> Iterator[Check]:
    """The CPU's result to the bit: both take the same steps in the same order."""
    for count in (0, 1, 1000, 1025, 6000):
        boxes, scores = scored(count)
        for method in (*METHODS, "hard"):
            for idxs in (None, torch.randint(20, (count,)) - 3):
                function = ops.soft_nms if idxs is None else ops.batched_soft_nms
                arguments = (boxes, scores, *([] if idxs is None else [idxs]))
                got = function(*(a.cuda() for a in arguments), method=method)
                for part, a, b in zip(
                    ("dets", "keep"), got, function(*arguments, method=method), strict=True
                ):
                    name = f"soft_nms {method} {count} classes={idxs is not None} {part}"
                    yield name, difference(a, b), 0.0


def gpu_times() -> Iterator[Timing]:
    """Against the way there and back to the CPU's kernel, which is what mmcv does."""
    for count in (1000, 5000, 20_000):
        boxes, scores = scored(count)
        idxs = torch.randint(80, (count,)).cuda()
        boxes, scores = boxes.cuda(), scores.cuda()
        for method in METHODS:
            yield (
                f"soft_nms {method} {count}, peer: by way of the CPU",
                lambda b=boxes, s=scores, m=method: ops.soft_nms(b, s, method=m),
                lambda b=boxes, s=scores, m=method: ops.soft_nms(b.cpu(), s.cpu(), method=m)[
                    0
                ].cuda(),
                count * 40,
            )
            yield (
                f"batched_soft_nms {method} {count}, 80 classes, peer: by way of the CPU",
                lambda b=boxes, s=scores, i=idxs, m=method: ops.batched_soft_nms(b, s, i, method=m),
                lambda b=boxes, s=scores, i=idxs, m=method: ops.batched_soft_nms(
                    b.cpu(), s.cpu(), i.cpu(), method=m
                )[0].cuda(),
                count * 48,
            )
