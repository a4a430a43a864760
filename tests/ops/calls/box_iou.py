from collections.abc import Callable

from d2proj import ops
from tests.ops.calls import Call, Draw


def boxes(draw: Draw) -> tuple:
    n, m = draw.choice(0, 1, 5, 17, 70), draw.choice(0, 1, 3, 33, 520)
    dtype = draw.choice(*draw.box_dtypes) if draw.sane else draw.dtype()
    return draw.boxes(n, 30.0, dtype), draw.boxes(m, 30.0, dtype)


def box_iou(draw: Draw) -> Call:
    fmt = "rotated" if draw.chance(0.02) else draw.choice("xyxy", "xywh", "cxcywh")
    return Call(ops.box_iou, (*boxes(draw), fmt), draw.sane, (0, 1))


def pairwise(function: Callable, *, eps: bool) -> Callable[[Draw], Call]:
    def draw_call(draw: Draw) -> Call:
        more = (draw.number(1e-9, 1e-3),) if eps else ()
        return Call(function, (*boxes(draw), *more), draw.sane, (0, 1))

    return draw_call


CALLS = {
    "box_iou": box_iou,
    "generalized_box_iou": pairwise(ops.generalized_box_iou, eps=False),
    "distance_box_iou": pairwise(ops.distance_box_iou, eps=True),
    "complete_box_iou": pairwise(ops.complete_box_iou, eps=True),
}
