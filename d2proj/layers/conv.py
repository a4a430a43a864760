"""Convolution with its normalisation and activation."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from d2proj.layers import fused
from d2proj.layers.activation import Activation, get_activation
from d2proj.layers.norm import FrozenBatchNorm2d, NormFactory, get_norm, scale_and_shift


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` followed by an optional normalisation and activation.

    The normalisation is the child ``norm``, as in Detectron2, so state-dict names agree
    (``conv1.weight``, ``conv1.norm.weight``, ...). A normalisation that is a constant scale and
    shift is folded into the kernel instead of being another pass over the map:
    ``FrozenBatchNorm2d`` always (gradients flow through the folded weight), ``BatchNorm2d`` in
    evaluation without gradients. A fold that needs no gradient is kept until a tensor that it was
    made from changes. Inside :func:`d2proj.layers.fused_inference` the whole is one compiled pass.

    Args:
        norm: module applied to the output, or None.
        activation: callable applied last, or None. May work in place.
        *args, **kwargs: as ``torch.nn.Conv2d``.
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation
        self._fold: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        self._packed: tuple[tuple[int, ...], fused.Packed] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'), to which a residual of that shape is added."""
        if fused.can_fuse(self, self.activation, x) and (
            self.norm is None or self._norm_is_constant()
        ):
            return fused.run(self, self._pack(), self.activation, x, residual)
        if self._norm_is_constant():
            weight, bias = self._folded()
            x = self._conv_forward(x, weight, bias)
        else:
            x = self._conv_forward(x, self.weight, self.bias)
            if self.norm is not None:
                x = self.norm(x)
        x = x if self.activation is None else self.activation(x)
        return x if residual is None else x + residual

    def _norm_is_constant(self) -> bool:
        norm = self.norm
        if isinstance(norm, FrozenBatchNorm2d):
            return True
        return (
            isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
            and norm.running_mean is not None
            and not norm.training
            and not torch.is_grad_enabled()
        )

    def _folded(self) -> tuple[Tensor, Tensor]:
        if (torch.is_grad_enabled() and self.weight.requires_grad) or torch.compiler.is_compiling():
            return self._make_fold()
        key = self._fold_key()
        if self._fold is None or self._fold[0] != key:
            # Outside inference mode, so that a later training step may use a frozen layer's fold.
            with torch.inference_mode(False), torch.no_grad():
                self._fold = (key, *self._make_fold())
        return self._fold[1], self._fold[2]

    def _make_fold(self) -> tuple[Tensor, Tensor]:
        scale, shift = scale_and_shift(cast(FrozenBatchNorm2d, self.norm))
        weight = self.weight * scale.view(-1, 1, 1, 1)
        return weight, shift if self.bias is None else self.bias * scale + shift

    def _pack(self) -> fused.Packed:
        key = self._fold_key()
        if self._packed is None or self._packed[0] != key:
            weight, bias = self._make_fold() if self.norm is not None else (self.weight, self.bias)
            self._packed = (key, fused.pack(self, weight, bias))
        return self._packed[1]

    def _fold_key(self) -> tuple[int, ...]:
        tensors = [self.weight, *(() if self.bias is None else (self.bias,))]
        if self.norm is not None:
            # Its own alone, and from the dicts: this runs at every call of a small layer.
            own = (*self.norm._parameters.values(), *self.norm._buffers.values())
            tensors += [t for t in own if t is not None]
        key = []
        for t in tensors:
            key += [t.data_ptr(), 0 if t.is_inference() else t._version]
        return tuple(key)

    def train(self, mode: bool = True) -> "Conv2d":
        """Switch to training or evaluation."""
        # Writes through ``.data`` leave no trace in the key: start each phase anew.
        self._fold = self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fold": None, "_packed": None}


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    norm: str | NormFactory | None = "BN",
    activation: str | Activation | None = "leaky",
) -> Conv2d:
    """The unit of darknet's networks: a convolution that keeps the map's size (by stride 1).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd; one number or height and width.
        stride: as ``torch.nn.Conv2d``.
        dilation: likewise.
        groups: likewise.
        norm: see :func:`d2proj.layers.get_norm`; without one the convolution has a bias.
        activation: see :func:`d2proj.layers.get_activation`.
    """
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return Conv2d(
        in_channels,
        out_channels,
        (height, width),
        stride=stride,
        padding=(dilation * (height // 2), dilation * (width // 2)),
        dilation=dilation,
        groups=groups,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=get_activation(activation),
    )
