from d2proj import ops
from tests.ops.calls import Call, Draw


def deform_roi_pool(draw: Draw) -> Call:
    n, c = draw.integer(1, 3), draw.choice(0, 1, 5, 16, 33)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    dtype = draw.dtype()
    input = draw.tensor(n, c, h, w, dtype=dtype)
    k = draw.choice(0, 1, 7, 40)
    rois = draw.rois(k, n, 20.0, draw.choice(*draw.box_dtypes))
    size = (draw.integer(1 - draw.chance(0.05), 4), draw.integer(1, 4))
    offset = draw.tensor(k, 2, *size, dtype=draw.dtype(), scale=3.0)
    rest = (size, draw.number(0.1, 2.0), draw.integer(-1, 3), draw.number(0.0, 0.5))
    if draw.choice(True, False, False, False):
        return Call(ops.deform_roi_pool, (input, rois, None, *rest), draw.sane, (0,))
    return Call(ops.deform_roi_pool, (input, rois, offset, *rest), draw.sane, (0, 2))


def deform_ps_roi_pool(draw: Draw) -> Call:
    n, classes = draw.integer(1, 3), draw.integer(1, 3)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    pooled, part, group = ((draw.integer(1, 4), draw.integer(1, 4)) for _ in range(3))
    c = classes * draw.choice(0, 1, 5, 16)
    input = draw.tensor(n, c * group[0] * group[1] + draw.chance(0.05), h, w, dtype=draw.dtype())
    k = draw.choice(0, 1, 7, 30)
    rois = draw.rois(k, n, 20.0, draw.choice(*draw.box_dtypes))
    offset = draw.tensor(k, 2 * classes, *part, dtype=draw.dtype(), scale=3.0)
    rest = (draw.number(0.1, 2.0), part, draw.integer(1 - draw.chance(0.05), 4), 0.1, group)
    return Call(ops.deform_ps_roi_pool, (input, rois, offset, pooled, *rest), draw.sane, (0, 2))


CALLS = {"deform_roi_pool": deform_roi_pool, "deform_ps_roi_pool": deform_ps_roi_pool}
