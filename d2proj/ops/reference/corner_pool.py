"""Corner pooling in plain torch: one step of the scan at a time."""

import torch
from torch import Tensor

_SCANS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}


def corner_pool(x: Tensor, direction: str) -> Tensor:
    """See :func:`d2proj.ops.corner_pool`. Autograd differentiates it, with the same tie rule."""
    dim, from_end = _SCANS[direction]
    steps = list(x.unbind(dim))
    if from_end:
        steps.reverse()
    best: list[Tensor] = []
    for value in steps:
        if best:
            # Only what is greater replaces; a NaN does, and nothing replaces it.
            last = best[-1]
            replaces = ((value > last) | value.isnan()) & ~last.isnan()
            value = torch.where(replaces, value, last)
        best.append(value)
    if from_end:
        best.reverse()
    return torch.stack(best, dim) if best else x.clone()


def corner_pool_pair(x_a: Tensor, x_b: Tensor, corner: str) -> Tensor:
    """See :func:`d2proj.ops.corner_pool_pair`."""
    first, second = {"top_left": ("top", "left"), "bottom_right": ("bottom", "right")}[corner]
    return corner_pool(x_a, first) + corner_pool(x_b, second)
