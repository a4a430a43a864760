"""Convolution with bias, activation and residual for inference on a CPU: the op's registration.

Weights come packed; :mod:`d2proj.layers.fused` does that and is the way to use it.
"""

from torch import Tensor, library
from torch import ops as _torch_ops

from d2proj.ops import _ext
from d2proj.ops._common import refuse_vmap


def is_built() -> bool:
    """Whether the library has the op (one that was built before it came has not)."""
    return _ext.AVAILABLE and hasattr(_torch_ops.d2proj, "_fused_conv2d")


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_channels: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    winograd: bool,
    depthwise: bool,
    activation: int,
    slope: float,
) -> Tensor:
    height = (input.shape[2] + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (input.shape[3] + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    channels_last = input.new_empty((input.shape[0], height, width, out_channels))
    return channels_last.permute(0, 3, 1, 2)


if is_built():
    library.register_fake("d2proj::_fused_conv2d", _fake)
    refuse_vmap("_fused_conv2d")
