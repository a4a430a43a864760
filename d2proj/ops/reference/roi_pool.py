"""RoI max pooling in plain torch: one bin at a time."""

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike, pair, to_rois


def spans(
    low: Tensor, high: Tensor, bins: int, size: int, scale: float, closed: bool = True
) -> list[tuple[int, int]]:
    """The cells [begin, end) of each bin along an axis of ``size`` cells.

    Args:
        low: Lower corner of the box.
        high: Upper corner.
        bins: How many it is cut into.
        size: Cells of the map.
        scale: Cells per box unit.
        closed: The upper corner's cell belongs to the box.
    """
    corners = (torch.stack([low, high]) * scale).double()
    # Halves go away from zero, unlike in torch.round.
    start, end = (corners.sign() * (corners.abs() + 0.5).floor()).clamp(-(2**40), 2**40).tolist()
    length = low.new_tensor(max(end - start + closed, 1.0)) / bins
    at = torch.arange(bins, dtype=low.dtype, device=low.device)
    first = ((at * length).floor().double() + start).clamp(0, size)
    last = (((at + 1) * length).ceil().double() + start).clamp(0, size)
    return list(zip(first.long().tolist(), last.long().tolist(), strict=True))


def roi_pool(
    input: Tensor,
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """See :func:`d2proj.ops.roi_pool`. Autograd differentiates it."""
    pooled_h, pooled_w = pair(output_size, "output_size")
    rois = to_rois("roi_pool", boxes)
    rois = rois.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    _, channels, height, width = input.shape
    nothing = input.new_zeros(channels)
    lowest = torch.tensor(torch.finfo(torch.float32).min).to(input)
    pooled = []
    for roi in rois:
        if not (roi[1:] * spatial_scale).isfinite().all():
            pooled += [nothing] * (pooled_h * pooled_w)
            continue
        index, x1, y1, x2, y2 = roi.unbind()
        columns = spans(x1, x2, pooled_w, width, spatial_scale)
        for top, bottom in spans(y1, y2, pooled_h, height, spatial_scale):
            for left, right in columns:
                cells = input[int(index), :, top:bottom, left:right].flatten(1)
                if cells.shape[1] == 0:
                    pooled.append(nothing)
                    continue
                # NaN and what is below -FLT_MAX are never taken; the first maximum is.
                cells = torch.where(cells > lowest, cells, lowest)
                first = cells.argmax(1, keepdim=True)
                pooled.append(cells.gather(1, first)[:, 0])
    if not pooled:
        return input.new_empty(0, channels, pooled_h, pooled_w)
    shape = (len(rois), pooled_h, pooled_w, channels)
    return torch.stack(pooled).view(shape).permute(0, 3, 1, 2).contiguous()
