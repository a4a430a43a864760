from typing import Any

from d2proj import ops
from tests.ops.calls import Call, Draw


def arguments(draw: Draw, channels: int) -> tuple[Any, Any, float]:
    n = draw.integer(1, 3)
    h, w = draw.integer(0, 12), draw.integer(1, 12)
    input = draw.tensor(n, channels, h, w, dtype=draw.dtype())
    rois = draw.rois(draw.choice(0, 1, 7, 40), n, 20.0, draw.choice(*draw.box_dtypes))
    return input, rois, draw.number(0.1, 2.0)


def roi_pool(draw: Draw) -> Call:
    input, rois, scale = arguments(draw, draw.choice(0, 1, 5, 16, 33, 65))
    size = (draw.integer(1 - draw.chance(0.05), 5), draw.integer(1, 5))
    return Call(ops.roi_pool, (input, rois, size, scale), draw.sane, (0,))


def spatial_pyramid_pool(draw: Draw) -> Call:
    input, rois, scale = arguments(draw, draw.choice(0, 1, 5, 16, 33, 65))
    bins = [draw.integer(1 - draw.chance(0.05), 6) for _ in range(draw.integer(1, 4))]
    bins = draw.choice([], [1] * 17, [-1]) if draw.chance(0.05) else bins
    return Call(ops.spatial_pyramid_pool, (input, rois, bins, scale), draw.sane, (0,))


CALLS = {"roi_pool": roi_pool, "spatial_pyramid_pool": spatial_pyramid_pool}
