import torch
from torch import Tensor

from d2proj import ops
from tests.ops.calls import Call, Draw


def multilevel_roi_align(draw: Draw) -> Call:
    n, c, count = draw.integer(1, 3), draw.choice(0, 1, 5, 16, 33), draw.integer(1, 4)
    dtype = draw.dtype()
    sizes = [(draw.integer(0, 12), draw.integer(1, 12)) for _ in range(count)]
    maps = [draw.tensor(n, c, h, w, dtype=dtype) for h, w in sizes]
    k = draw.choice(0, 1, 7, 40)
    rois = draw.rois(k, n, 40.0, draw.choice(*draw.box_dtypes))
    size = (draw.integer(1 - draw.chance(0.05), 5), draw.integer(1, 5))
    scales = [2.0**-i if not draw.chance(0.05) else draw.number(0.1, 2.0) for i in range(count)]
    reduce = "mean" if draw.chance(0.03) else draw.choice("assigned", "none", "sum", "max")
    levels = None
    if (reduce == "assigned" and draw.choice(True, False)) or draw.chance(0.03):
        g = torch.Generator().manual_seed(draw.integer(0, 2**31))
        levels = torch.randint(count, (k,), generator=g)
        if k and draw.chance(0.1):
            levels[0] = draw.choice(-1, count, 2**62)
    rest = (size, scales, draw.integer(-1, 3), draw.choice(True, False), levels, reduce)

    def pool(boxes: Tensor, *maps: Tensor) -> Tensor:
        return ops.multilevel_roi_align(maps, boxes, *rest, canonical_size=20.0)

    return Call(pool, (rois, *maps), draw.sane, tuple(range(1, count + 1)))


CALLS = {"multilevel_roi_align": multilevel_roi_align}
