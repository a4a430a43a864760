from collections.abc import Callable

from d2proj import ops
from tests.ops.calls import Call, Draw


def arguments(draw: Draw) -> tuple:
    count = draw.choice(0, 1, 5, 17, 2049)
    dtype = draw.choice(*draw.box_dtypes) if draw.sane else draw.dtype()
    reduction = "median" if draw.chance(0.02) else draw.choice("none", "mean", "sum")
    boxes = draw.boxes(count, 30.0, dtype), draw.boxes(count, 30.0, dtype)
    return (*boxes, reduction, draw.number(1e-9, 1e-3))


def iou_loss(draw: Draw) -> Call:
    mode = draw.choice("linear", "log")
    return Call(ops.iou_loss, (*arguments(draw), mode), draw.sane, (0, 1))


def loss(function: Callable) -> Callable[[Draw], Call]:
    return lambda draw: Call(function, arguments(draw), draw.sane, (0, 1))


CALLS = {
    "iou_loss": iou_loss,
    "generalized_box_iou_loss": loss(ops.generalized_box_iou_loss),
    "distance_box_iou_loss": loss(ops.distance_box_iou_loss),
    "complete_box_iou_loss": loss(ops.complete_box_iou_loss),
}
