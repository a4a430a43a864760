"""Convolution, bias, activation and residual in one compiled pass: inference on a CPU.

Inside :func:`fused_inference` every :class:`d2proj.layers.Conv2d` that can goes this way, without
any change to the model: weights are folded and packed at the first call and kept beside the
parameters until those change. 3x3 kernels of stride 1 take a quarter of the multiplications
(Winograd's F(4x4, 3x3); Lavin & Gray 2016), at rounding errors some five times those of a direct
sum (about 1e-5 of the largest value of a layer).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.activation import ACTIVATIONS, leaky
from d2proj.ops.fused_conv2d import is_built

_LANES = 16  # channels of a panel: csrc/fused_conv2d
#: Below as many input channels the transforms cost more than they save.
_WINOGRAD_CHANNELS = 16
_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
#: Activation -> its number in csrc/fused_conv2d/fused_conv2d.h and the slope.
_FUSED: dict[Any, tuple[int, float]] = {
    None: (0, 0.0),
    F.relu: (1, 0.0),
    torch.relu: (1, 0.0),
    leaky: (1, 0.1),
    ACTIVATIONS["relu6"]: (2, 0.0),
    torch.sigmoid: (3, 0.0),
    F.silu: (4, 0.0),
    F.mish: (5, 0.0),
}
_enabled: ContextVar[bool] = ContextVar("fused_inference", default=False)


@contextmanager
def fused_inference(enabled: bool = True) -> Iterator[None]:
    """Within it, convolutions without gradients on a CPU run fused.

    That is in float32, with one group or depthwise, with the activations that darknet's detectors
    have.

    Everything else runs as it always does: other devices and dtypes, autocast, other groups,
    training, tracing and ``torch.compile``.

    Args:
        enabled: False: change nothing.
    """
    token = _enabled.set(enabled and is_built())
    try:
        yield
    finally:
        _enabled.reset(token)


def is_fused() -> bool:
    """Whether :func:`fused_inference` is in force."""
    return _enabled.get()


@dataclass(frozen=True)
class Packed:
    """A convolution's weight as the kernel reads it.

    Attributes:
        weight: (panels, rows, C_in / groups, 16): rows are the kernel's taps, or the 36 values of
            its transform.
        bias: (C_out,) or None.
        winograd: which of the two.
    """

    weight: Tensor
    bias: Tensor | None
    winograd: bool


def can_fuse(conv: nn.Conv2d, activation: Callable[[Tensor], Tensor] | None, x: Tensor) -> bool:
    """Whether the kernel computes this convolution of ``x``, followed by this activation."""
    return (
        _enabled.get()
        and not torch.is_grad_enabled()
        and activation in _FUSED
        and x.dtype == torch.float32 == conv.weight.dtype
        and x.device.type == "cpu" == conv.weight.device.type
        and x.dim() == 4
        and (conv.groups == 1 or conv.groups == conv.in_channels == conv.out_channels)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def pack(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Packed:
    """Pack a weight (C_out, C_in, kh, kw), normalisation folded in, of ``conv``."""
    outputs, channels = weight.shape[:2]
    winograd = (
        tuple(weight.shape[2:]) == (3, 3)
        and conv.stride == (1, 1) == conv.dilation
        and channels >= _WINOGRAD_CHANNELS
    )  # channels: 1, where the convolution is depthwise
    if winograd:
        g = torch.tensor(_TRANSFORM, dtype=torch.float64)
        # In float64: the transform's own rounding would add to that of the products.
        rows = torch.einsum("ai,bj,kcij->kabc", g, g, weight.double()).flatten(1, 2).float()
    else:
        rows = weight.permute(0, 2, 3, 1).flatten(1, 2)
    panels = -(-outputs // _LANES)
    rows = F.pad(rows, (0, 0, 0, 0, 0, panels * _LANES - outputs))
    packed = rows.unflatten(0, (panels, _LANES)).permute(0, 2, 3, 1).contiguous()
    return Packed(packed, None if bias is None else bias.contiguous(), winograd)


def run(
    conv: nn.Conv2d,
    packed: Packed,
    activation: Callable[[Tensor], Tensor] | None,
    x: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """(N, C_in, H, W) -> activation(convolution) + residual, (N, C_out, H', W'), channels-last."""
    number, slope = _FUSED[activation]
    result: Tensor = torch.ops.d2proj._fused_conv2d(
        x,
        packed.weight,
        packed.bias,
        residual,
        conv.out_channels,
        *conv.kernel_size,
        *conv.stride,
        *conv.padding,
        *conv.dilation,
        packed.winograd,
        conv.groups > 1,
        number,
        slope,
    )
    return result
