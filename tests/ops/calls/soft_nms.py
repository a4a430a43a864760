from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.nms import arguments


def options(draw: Draw) -> tuple:
    method = draw.choice("linear", "gaussian", "hard")
    sigma, min_score = draw.number(0.1, 2.0), draw.choice(draw.number(0.0, 0.2), 0.0, -10.0)
    return draw.number(0.0, 1.0), sigma, min_score, method


def soft_nms(draw: Draw) -> Call:
    boxes, scores, _ = arguments(draw)
    return Call(ops.soft_nms, (boxes, scores, *options(draw)), draw.sane)


def batched_soft_nms(draw: Draw) -> Call:
    return Call(ops.batched_soft_nms, (*arguments(draw), *options(draw)), draw.sane)


CALLS = {"soft_nms": soft_nms, "batched_soft_nms": batched_soft_nms}
