"""Position-sensitive pooling in plain torch."""

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike, pair, to_rois
from d2proj.ops.reference.roi_align import roi_align
from d2proj.ops.reference.roi_pool import spans


def ps_roi_pool(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """See :func:`d2proj.ops.ps_roi_pool`. One bin at a time; autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    n, channels, height, width = input.shape
    maps = input.to(dtype).reshape(n, -1, pooled_h, pooled_w, height, width)
    rois = to_rois("ps_roi_pool", boxes).to(dtype)
    pooled = []
    for roi in rois:
        finite = bool((roi[1:] * spatial_scale).isfinite().all())
        index, x1, y1, x2, y2 = roi.unbind()
        # The last row and the last column of the map are never read.
        rows, columns = (
            (
                spans(low, high, bins, size - 1, spatial_scale, closed=False)
                if finite
                else [(0, 0)] * bins
            )
            for low, high, bins, size in ((y1, y2, pooled_h, height), (x1, x2, pooled_w, width))
        )
        for ph, (top, bottom) in enumerate(rows):
            for pw, (left, right) in enumerate(columns):
                image = int(index)
                cells = maps[image, :, ph, pw, top:bottom, left:right].flatten(1)
                pooled.append(cells.sum(1) / max(cells.shape[1], 1))
    if not pooled:
        return input.new_empty(0, channels // (pooled_h * pooled_w), pooled_h, pooled_w)
    shape = (len(rois), pooled_h, pooled_w, -1)
    return torch.stack(pooled).view(shape).permute(0, 3, 1, 2).contiguous().to(input.dtype)


def ps_roi_align(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """See :func:`d2proj.ops.ps_roi_align`: RoIAlign, of which each bin keeps its own channels."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    every = roi_align(input, boxes, output_size, spatial_scale, sampling_ratio, aligned=True)
    bins = pooled_h * pooled_w
    every = every.reshape(len(every), -1, bins, bins)  # K, C, group of channels, bin
    own = torch.arange(bins, device=input.device)
    return every[:, :, own, own].reshape(len(every), -1, pooled_h, pooled_w)
