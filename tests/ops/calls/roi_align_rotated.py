import torch

from d2proj import ops
from tests.ops.calls import Call, Draw


def roi_align_rotated(draw: Draw) -> Call:
    n, c = draw.integer(1, 3), draw.choice(0, 1, 5, 16, 33)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    input = draw.tensor(n, c, h, w, dtype=draw.dtype())
    count = draw.choice(0, 1, 7, 40)
    rois = draw.rois(count, n, 20.0, draw.choice(*draw.box_dtypes))
    angles = [[draw.number(-400.0, 400.0)] for _ in range(count)]
    angle = torch.tensor(angles, dtype=rois.dtype).reshape(count, 1)
    rois = draw.layout(torch.cat([rois, angle], 1))
    rois = rois[:, 1:] if draw.chance(0.02) else rois
    size = (draw.integer(1 - draw.chance(0.05), 5), draw.integer(1, 5))
    rest = (draw.number(0.1, 2.0), draw.integer(-1, 3))
    return Call(ops.roi_align_rotated, (input, rois, size, *rest), draw.sane, (0,))


CALLS = {"roi_align_rotated": roi_align_rotated}
