"""Spatial pyramid pooling of boxes (He et al., SPPNet, ECCV 2014, section 2.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2proj.ops import _ext
from d2proj.ops._common import (
    BoxesLike,
    is_channels_last,
    memory_format,
    register_autocast,
    register_differentiable,
    to_rois,
)


def spatial_pyramid_pool(
    input: Tensor,
    boxes: BoxesLike,
    bins: Sequence[int] = (1, 2, 3, 6),
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool boxes of a feature map to vectors: the maxima over several grids of bins, in one pass.

    The same as ``roi_pool`` to each of the grids, flattened and concatenated.

    Args:
        input: (N, C, H, W), float16, bfloat16, float32 or float64; NCHW or channels-last in memory.
        boxes: (K, 5) of image index, x1, y1, x2, y2, or a (K_i, 4) for each image; in the units
            that ``spatial_scale`` maps to feature cells. float32 or float64 (half is raised).
        bins: The grids, ``b`` x ``b`` bins each: 1 to 16 of them. SPPNet's detector has 1, 2, 3, 6.
        spatial_scale: Feature cells per box unit, 1/16 for a map of stride 16.

    Returns:
        (K, C * sum(b * b)) in the dtype of ``input``: grid after grid, in it channel after channel,
        in it row after row of bins.

    Raises:
        RuntimeError: An argument has the wrong shape, dtype or device, or, on the CPU, a box's
            image index is out of range (on CUDA such a box pools to zero).
    """
    _ext.require()
    rois = to_rois("spatial_pyramid_pool", boxes)
    # Where the maxima are is worked out only if the backward pass will ask.
    wanted = input.requires_grad and torch.is_grad_enabled()
    return torch.ops.d2proj.spatial_pyramid_pool(input, rois, list(bins), spatial_scale, wanted)[0]


class SpatialPyramidPool(nn.Module):
    """See :func:`spatial_pyramid_pool`."""

    def __init__(self, bins: Sequence[int] = (1, 2, 3, 6), spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: BoxesLike) -> Tensor:
        """Pool ``rois`` of ``input`` (see :func:`spatial_pyramid_pool`)."""
        return spatial_pyramid_pool(input, rois, self.bins, self.spatial_scale)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"bins={self.bins}, spatial_scale={self.spatial_scale}"


def _forward_fake(
    input: Tensor, boxes: Tensor, bins: Sequence[int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    op = "spatial_pyramid_pool"
    torch._check(input.dim() == 4, lambda: f"{op}: input must have shape (N, C, H, W)")
    torch._check(boxes.dim() == 2, lambda: f"{op}: boxes must have shape (K, 5)")
    shape = (boxes.shape[0], input.shape[1] * sum(b * b for b in bins))
    return input.new_empty(shape), input.new_empty(
        shape if with_argmax else (0,), dtype=torch.int32
    )


def _backward_fake(
    grad: Tensor,
    boxes: Tensor,
    argmax: Tensor,
    bins: Sequence[int],
    spatial_scale: float,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    return torch.empty(
        (batch_size, channels, height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=memory_format(channels_last),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, boxes, *ctx.options, _ = inputs
    ctx.save_for_backward(boxes, output[1])
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    boxes, argmax = ctx.saved_tensors
    grad_input = torch.ops.d2proj._spatial_pyramid_pool_backward(
        grad,
        boxes,
        argmax,
        *ctx.options,
        *ctx.input_shape,
        ctx.channels_last,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_input, None, None, None, None


if _ext.AVAILABLE:
    register_differentiable(
        "spatial_pyramid_pool",
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup_context=_setup_context,
        backward=_backward,
    )
    register_autocast("spatial_pyramid_pool", box_arguments=[1])
