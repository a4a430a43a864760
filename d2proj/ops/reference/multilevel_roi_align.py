"""RoIAlign from the levels of a pyramid in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2proj.ops._common import BoxesLike, to_rois
from d2proj.ops.reference.roi_align import roi_align


def assign_levels(
    boxes: Tensor,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """``floor(k0 + log2(sqrt(w h) / 224))``, clamped, counted from ``min_level``.

    (N, 4) boxes give (N,) int64 levels. Boxes whose area is not a number go to the finest level.
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    size = ((x2 - x1) * (y2 - y1)).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_size + 1e-8))
    return level.nan_to_num(nan=min_level).clamp(min_level, max_level).long() - min_level


def multilevel_roi_align(
    inputs: Sequence[Tensor],
    boxes: BoxesLike,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    levels: Tensor | None = None,
    reduce: str = "assigned",
    *,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """See :func:`d2proj.ops.multilevel_roi_align`. Every box from every level."""
    rois = to_rois("multilevel_roi_align", boxes)
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    pooled = torch.stack(
        [
            roi_align(each.to(dtype), rois, output_size, scale, sampling_ratio, aligned)
            for each, scale in zip(inputs, spatial_scales, strict=True)
        ],
        dim=1,
    )  # (K, L, C, h, w)
    if reduce == "assigned":
        if levels is None:
            min_level = round(-torch.tensor(spatial_scales[0]).log2().item())
            levels = assign_levels(
                rois[:, 1:],
                min_level=min_level,
                max_level=min_level + len(inputs) - 1,
                canonical_size=canonical_size,
                canonical_level=canonical_level,
            )
        pooled = pooled[torch.arange(len(rois), device=levels.device), levels]
    elif reduce == "sum":
        pooled = pooled.sum(1)
    elif reduce == "max":
        # argmax does not promise which of equal values it names, so the first is looked for.
        best = (pooled == pooled.amax(1, keepdim=True)) | pooled.isnan()
        first = best.cumsum(1).eq(0).sum(1, keepdim=True)
        pooled = pooled.gather(1, first).squeeze(1)
    return pooled.to(inputs[0].dtype)
