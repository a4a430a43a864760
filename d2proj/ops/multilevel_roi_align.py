"""RoIAlign from the levels of a feature pyramid: function, module, registrations.

Which level: Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1. All levels, reduced: Liu
et al., Path Aggregation Network, CVPR 2018, section 3.2. All levels, as they are: Guo et al.,
AugFPN, CVPR 2020.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _ext
from d2proj.ops._common import (
    BoxesLike,
    is_channels_last,
    memory_format,
    pair,
    register_autocast,
    register_differentiable,
    to_rois,
)

#: In the order of csrc/roi_align/roi_align.h's Reduce.
REDUCTIONS = ("assigned", "none", "sum", "max")


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
    """Pool boxes from one level of a pyramid each, or from all its levels, in the boxes' order.

    Args:
        inputs: One map (N, C, H_l, W_l) per level, finest first, at most 16; float16, bfloat16,
            float32 or float64, all of one dtype. Differentiable.
        boxes: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; in the units
            that ``spatial_scales`` map to feature cells. float32 or float64 (half is raised).
        output_size: Height and width of the result, or one number for both.
        spatial_scales: Feature cells per box unit of each level. For FPN's rule they must be
            halving powers of two: 1/4, 1/8, ...
        sampling_ratio: Samples per bin along an axis; 0 or less: as many as the bin has cells.
        aligned: Shift boxes by half a cell so that cell centres sit at .5 (what Detectron2 uses).
        levels: (K,) int64, the level of each box for ``reduce="assigned"``, 0 the finest; None:
            ``floor(canonical_level + log2(sqrt(w h) / canonical_size + 1e-8))``, clamped to the
            levels there are (a box whose area is not a number goes to the finest).
        reduce: ``assigned``: from the box's own level; ``max`` or ``sum``: over all levels (of
            equal values the finest level's takes the gradient); ``none``: every level.
        canonical_size: A box of this size (in box units) belongs to ``canonical_level``.
        canonical_level: As log2 of a stride.

    Returns:
        (K, C, height, width), for ``none`` (K, levels, C, height, width); dtype of ``inputs``,
        memory format of the first.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, an image
            index or a level is out of range (on CUDA such a box pools to zero).
        ValueError: ``reduce`` is none of the four.
    """
    _ext.require()
    height, width = pair(output_size, "output_size")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    output, _ = torch.ops.d2proj.multilevel_roi_align(
        inputs,
        to_rois("multilevel_roi_align", boxes),
        levels,
        spatial_scales,
        height,
        width,
        sampling_ratio,
        aligned,
        REDUCTIONS.index(reduce),
        canonical_size,
        canonical_level,
    )
    return output.unflatten(0, (-1, len(inputs))) if reduce == "none" else output


class MultiLevelRoIAlign(nn.Module):
    """See :func:`multilevel_roi_align`."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scales: Sequence[float],
        sampling_ratio: int = 0,
        aligned: bool = True,
        reduce: str = "assigned",
        *,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scales = list(spatial_scales)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.reduce = reduce
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(
        self, inputs: Sequence[Tensor], boxes: BoxesLike, levels: Tensor | None = None
    ) -> Tensor:
        """Pool ``boxes`` of ``inputs`` (see :func:`multilevel_roi_align`)."""
        return multilevel_roi_align(
            inputs,
            boxes,
            self.output_size,
            self.spatial_scales,
            self.sampling_ratio,
            self.aligned,
            levels,
            self.reduce,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scales={self.spatial_scales}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, reduce={self.reduce!r}"
        )


def _forward_fake(
    inputs: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    reduce: int,
    canonical_size: float,
    canonical_level: int,
) -> tuple[Tensor, Tensor]:
    torch._check(len(inputs) > 0, lambda: "multilevel_roi_align: inputs must not be empty")
    first = inputs[0]
    torch._check(
        first.dim() == 4, lambda: "multilevel_roi_align: inputs must have shape (N, C, H, W)"
    )
    torch._check(boxes.dim() == 2, lambda: "multilevel_roi_align: boxes must have shape (K, 5)")
    rows = boxes.shape[0] * (len(inputs) if REDUCTIONS[reduce] == "none" else 1)
    rest = (first.shape[1], pooled_height, pooled_width)
    layout = memory_format(is_channels_last(first))
    output = torch.empty(
        (rows, *rest), dtype=first.dtype, device=first.device, memory_format=layout
    )
    winners = rows if REDUCTIONS[reduce] == "max" else 0
    winner = torch.empty(
        (winners, *rest), dtype=torch.int8, device=first.device, memory_format=layout
    )
    return output, winner


def _backward_fake(
    grad: Tensor,
    winner: Tensor,
    boxes: Tensor,
    levels: Tensor | None,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    reduce: int,
    canonical_size: float,
    canonical_level: int,
    channels_last: Sequence[int],
    deterministic: bool,
) -> list[Tensor]:
    return [
        torch.empty(
            (batch_size, channels, height, width),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=memory_format(bool(last)),
        )
        for height, width, last in zip(heights, widths, channels_last, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, boxes, levels, *ctx.options = inputs
    ctx.save_for_backward(boxes, levels, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.batch_size, ctx.channels = maps[0].shape[:2]
    ctx.heights = [each.shape[2] for each in maps]
    ctx.widths = [each.shape[3] for each in maps]
    ctx.channels_last = [int(is_channels_last(each)) for each in maps]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    boxes, levels, winner = ctx.saved_tensors
    scales, pooled_height, pooled_width, sampling_ratio, aligned, reduce, *canonical = ctx.options
    grads = torch.ops.d2proj._multilevel_roi_align_backward(
        grad,
        winner,
        boxes,
        levels,
        scales,
        pooled_height,
        pooled_width,
        ctx.batch_size,
        ctx.channels,
        ctx.heights,
        ctx.widths,
        sampling_ratio,
        aligned,
        reduce,
        *canonical,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (grads, *[None] * 10)


if _ext.AVAILABLE:
    register_differentiable(
        "multilevel_roi_align",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("multilevel_roi_align", box_arguments=[1])
