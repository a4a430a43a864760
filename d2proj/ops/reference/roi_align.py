"""RoIAlign in plain torch: two small matrix products a box."""

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike, pair, to_rois


def _axis_weights(
    low: Tensor, high: Tensor, bins: int, size: int, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, float]:
    """Weight of each pixel in each bin along an axis, (bins, size), and the samples a bin."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    length = high * scale - offset - start
    if not aligned:
        length = length.clamp(min=1)
    bin_length = length / bins
    grid = ratio if ratio > 0 else int(torch.ceil(bin_length).item())
    weights = low.new_zeros(bins, size)
    if grid <= 0:
        return weights, grid
    b = torch.arange(bins, dtype=low.dtype, device=low.device)[:, None]
    i = torch.arange(grid, dtype=low.dtype, device=low.device)[None, :]
    at = start + b * bin_length + (i + 0.5) * bin_length / grid  # (bins, grid)
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    first = at.floor()
    fraction = at - first
    rows = b.long().expand_as(first)
    for pixel, weight in ((first, 1 - fraction), ((first + 1).clamp(max=size - 1), fraction)):
        weights.index_put_((rows, pixel.long()), weight * inside, accumulate=True)
    return weights, grid


def roi_align(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """See :func:`d2proj.ops.roi_align`. One box at a time; autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    features = input.to(dtype)
    rois = to_rois("roi_align", boxes).to(dtype)
    _, channels, height, width = input.shape
    pooled = []
    for roi in rois:
        if not roi.isfinite().all():
            pooled.append(features.new_zeros(channels, pooled_h, pooled_w))
            continue
        index, x1, y1, x2, y2 = roi.unbind()
        y, grid_h = _axis_weights(y1, y2, pooled_h, height, spatial_scale, sampling_ratio, aligned)
        x, grid_w = _axis_weights(x1, x2, pooled_w, width, spatial_scale, sampling_ratio, aligned)
        count = max(grid_h * grid_w, 1)
        pooled.append(y @ features[int(index)] @ x.T / count)  # (C, pooled_h, pooled_w)
    if not pooled:
        return input.new_empty(0, channels, pooled_h, pooled_w)
    return torch.stack(pooled).to(input.dtype)
