import torch
from torch import Tensor

from d2proj import ops
from tests.ops.calls import Call, Draw


def rotated_boxes(draw: Draw, count: int, size: float = 30.0) -> Tensor:
    """(count, 5); some equal, empty, inverted or wild unless sane."""
    upright = draw.boxes(count, size, torch.float64)
    angles = draw.tensor(count, 1, dtype=torch.float64, scale=200.0)
    if angles.shape != (count, 1) or upright.shape != (count, 4):
        return angles
    centre, sides = (upright[:, :2] + upright[:, 2:]) / 2, upright[:, 2:] - upright[:, :2]
    if draw.choice(True, False):
        angles = (angles / 45).round() * 45
    boxes = torch.cat([centre, sides, angles], 1).to(draw.choice(*draw.box_dtypes))
    return draw.layout(boxes)


def box_iou_rotated(draw: Draw) -> Call:
    boxes = [rotated_boxes(draw, draw.choice(0, 1, 7, 16, 33)) for _ in range(2)]
    return Call(ops.box_iou_rotated, tuple(boxes), draw.sane)


CALLS = {"box_iou_rotated": box_iou_rotated}
