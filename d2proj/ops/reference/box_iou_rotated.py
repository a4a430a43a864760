"""IoU of rotated boxes by clipping polygons (Sutherland and Hodgman, 1974), pair by pair."""

import math

import torch
from torch import Tensor

Point = tuple[float, float]


def corners(box: list[float]) -> list[Point]:
    """The four corners of (cx, cy, w, h, degrees counter-clockwise; y points down), in order."""
    cx, cy, w, h, degrees = box
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    local = ((w / 2, h / 2), (-w / 2, h / 2), (-w / 2, -h / 2), (w / 2, -h / 2))
    return [(cx + c * x + s * y, cy - s * x + c * y) for x, y in local]


def _cross(a: Point, b: Point, p: Point) -> float:
    """Positive where p lies on the left of the line from a to b."""
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


def clip(polygon: list[Point], a: Point, b: Point) -> list[Point]:
    """The part of a polygon on the left of the line from a to b."""
    kept: list[Point] = []
    for i, p in enumerate(polygon):
        q = polygon[i - 1]
        side_p, side_q = _cross(a, b, p), _cross(a, b, q)
        if (side_p >= 0) != (side_q >= 0):
            t = side_q / (side_q - side_p)
            kept.append((q[0] + t * (p[0] - q[0]), q[1] + t * (p[1] - q[1])))
        if side_p >= 0:
            kept.append(p)
    return kept


def iou(box1: list[float], box2: list[float]) -> float:
    """Of two boxes; zero where one is empty, inverted, infinite or NaN."""
    for box in (box1, box2):
        if not (all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0):
            return 0.0
    # About the first centre: far from the origin corners lose digits.
    box2 = [box2[0] - box1[0], box2[1] - box1[1], *box2[2:]]
    common = corners([0.0, 0.0, *box1[2:]])
    others = corners(box2)
    for i in range(4):
        common = clip(common, others[i - 1], others[i])
    around = [_cross((0.0, 0.0), common[i - 1], common[i]) for i in range(len(common))]
    inter = max(sum(around) / 2, 0.0)
    return min(inter / (box1[2] * box1[3] + box2[2] * box2[3] - inter), 1.0)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """See :func:`d2proj.ops.box_iou_rotated`. In float64 whatever comes; O(N M) Python steps."""
    wide = torch.float64 in (boxes1.dtype, boxes2.dtype)
    rows = [[iou(a, b) for b in boxes2.double().tolist()] for a in boxes1.double().tolist()]
    result = torch.tensor(rows, dtype=torch.float64 if wide else torch.float32)
    return result.reshape(len(boxes1), len(boxes2))
