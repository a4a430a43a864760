from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.box_iou_rotated import rotated_boxes


def arguments(draw: Draw) -> tuple:
    count = draw.choice(0, 1, 2, 17, 150)
    idxs = draw.tensor(count, scale=3.0).nan_to_num().long()
    return rotated_boxes(draw, count), draw.tensor(count, dtype=draw.dtype()), idxs


def nms_rotated(draw: Draw) -> Call:
    boxes, scores, _ = arguments(draw)
    threshold = draw.number(-0.1 * draw.chance(0.1), 1.0)
    return Call(ops.nms_rotated, (boxes, scores, threshold), draw.sane)


def batched_nms_rotated(draw: Draw) -> Call:
    return Call(ops.batched_nms_rotated, (*arguments(draw), draw.number(0.0, 1.0)), draw.sane)


CALLS = {"nms_rotated": nms_rotated, "batched_nms_rotated": batched_nms_rotated}
