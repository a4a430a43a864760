from d2proj import ops
from tests.ops.calls import Call, Draw


def arguments(draw: Draw) -> tuple:
    count = draw.choice(0, 1, 2, 17, 130)
    boxes = draw.boxes(count, 30.0, draw.choice(*draw.box_dtypes))
    return (
        boxes,
        draw.tensor(count, dtype=draw.dtype()),
        draw.tensor(count, scale=3.0).nan_to_num().long(),
    )


def nms(draw: Draw) -> Call:
    boxes, scores, _ = arguments(draw)
    return Call(ops.nms, (boxes, scores, draw.number(0.0, 1.0)), draw.sane)


def batched_nms(draw: Draw) -> Call:
    return Call(ops.batched_nms, (*arguments(draw), draw.number(0.0, 1.0)), draw.sane)


def nms_padded(draw: Draw) -> Call:
    boxes, scores, idxs = arguments(draw)
    threshold = draw.number(-0.1 * draw.chance(0.1), 1.0)
    return Call(ops.nms_padded, (boxes, scores, threshold, draw.choice(None, idxs)), draw.sane)


CALLS = {"nms": nms, "batched_nms": batched_nms, "nms_padded": nms_padded}
