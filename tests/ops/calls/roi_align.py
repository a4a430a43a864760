from d2proj import ops
from tests.ops.calls import Call, Draw


def roi_align(draw: Draw) -> Call:
    n, c = draw.integer(1, 3), draw.choice(0, 1, 5, 16, 33)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    dtype = draw.dtype()
    input = draw.tensor(n, c, h, w, dtype=dtype)
    rois = draw.rois(draw.choice(0, 1, 7, 40), n, 20.0, draw.choice(*draw.box_dtypes))
    size = (draw.integer(1 - draw.chance(0.05), 5), draw.integer(1, 5))
    rest = (draw.number(0.1, 2.0), draw.integer(-1, 3), draw.choice(True, False))
    return Call(ops.roi_align, (input, rois, size, *rest), draw.sane, (0,))


CALLS = {"roi_align": roi_align}
