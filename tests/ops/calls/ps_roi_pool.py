from d2proj import ops
from tests.ops.calls import Call, Draw
from tests.ops.calls.roi_pool import arguments


def ps_roi_pool(draw: Draw) -> Call:
    size = (draw.integer(1, 4), draw.integer(1, 4))
    channels = draw.choice(0, 1, 2, 17) * size[0] * size[1] + draw.chance(0.05)
    input, rois, scale = arguments(draw, channels)
    size = (0, 1) if draw.chance(0.05) else size
    return Call(ops.ps_roi_pool, (input, rois, size, scale), draw.sane, (0,))


def ps_roi_align(draw: Draw) -> Call:
    call = ps_roi_pool(draw)
    call.function = ops.ps_roi_align
    call.arguments += (draw.integer(-1, 3),)
    return call


CALLS = {"ps_roi_pool": ps_roi_pool, "ps_roi_align": ps_roi_align}
