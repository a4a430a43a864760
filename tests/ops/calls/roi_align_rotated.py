import torch

from d2proj import ops
from tests.ops.calls import Call, Draw


def roi_align_rotated(draw: Draw) -> Call:
    n, c = draw.integer(1, 3), draw.choice(0, 1, 5, 16, 33)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    input = draw.tensor(n, c, h, w, dtype=draw.dtype())
    count = draw.choice(0, 1, 7, 40)
    upright = draw.rois(count, n, 20.0, draw.choice(*draw.box_dtypes))
    angle = draw.tensor(count, 1, dtype=upright.dtype, scale=200.0)
    if angle.dim() != 2:
        angle = angle.reshape(-1)[:count, None]
    rois = draw.layout(torch.cat([upright, angle], 1))
    size = (draw.integer(1 - draw.chance(0.05), 5), draw.integer(1, 5))
    rest = (draw.number(0.1, 2.0), draw.integer(-1, 3))
    return Call(ops.roi_align_rotated, (input, rois, size, *rest), draw.sane, (0,))


CALLS = {"roi_align_rotated": roi_align_rotated}
