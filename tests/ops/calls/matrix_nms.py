from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.nms import arguments


def matrix_nms(draw: Draw) -> Call:
    boxes, scores, idxs = arguments(draw)
    method, sigma = draw.choice("gaussian", "linear"), draw.number(0.1, 4.0)
    min_score = draw.choice(draw.number(0.0, 0.2), -10.0)
    idxs = draw.choice(None, idxs)
    return Call(ops.matrix_nms, (boxes, scores, idxs, method, sigma, min_score), draw.sane)


CALLS = {"matrix_nms": matrix_nms}
