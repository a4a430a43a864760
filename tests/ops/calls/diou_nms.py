from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.nms import arguments


def options(draw: Draw) -> tuple:
    threshold = draw.number(-0.1 * draw.chance(0.1), 1.0)
    return threshold, draw.choice(1.0, draw.number(0.0, 3.0))


def diou_nms(draw: Draw) -> Call:
    boxes, scores, _ = arguments(draw)
    return Call(ops.diou_nms, (boxes, scores, *options(draw)), draw.sane)


def batched_diou_nms(draw: Draw) -> Call:
    return Call(ops.batched_diou_nms, (*arguments(draw), *options(draw)), draw.sane)


CALLS = {"diou_nms": diou_nms, "batched_diou_nms": batched_diou_nms}
