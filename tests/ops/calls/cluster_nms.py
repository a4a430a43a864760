import functools

from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.nms import arguments


def options(draw: Draw) -> dict:
    beta, sigma = draw.number(0.0, 2.0), draw.number(0.1, 1.0)
    return {"beta": beta, "sigma": sigma, "min_score": draw.choice(draw.number(0.0, 0.2), -10.0)}


def positional(draw: Draw) -> tuple:
    threshold = draw.number(-0.1 * draw.chance(0.1), 1.0)
    return threshold, draw.choice("plain", "score_penalty", "distance", "weighted")


def cluster_nms(draw: Draw) -> Call:
    boxes, scores, _ = arguments(draw)
    call = functools.partial(ops.cluster_nms, **options(draw))
    return Call(call, (boxes, scores, *positional(draw)), draw.sane)


def batched_cluster_nms(draw: Draw) -> Call:
    call = functools.partial(ops.batched_cluster_nms, **options(draw))
    return Call(call, (*arguments(draw), *positional(draw)), draw.sane)


CALLS = {"cluster_nms": cluster_nms, "batched_cluster_nms": batched_cluster_nms}
