"""Convolution with weights of its own for every cell."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.activation import Activation, get_activation


class LocallyConnected2d(nn.Module):
    """darknet's ``[local]`` (YOLOv1's last but one layer).

    ``weight`` is (cells, out_channels, in_channels * kernel_size²), ``bias`` (out_channels, H',
    W').

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as ``torch.nn.Conv2d``.
        output_size: height and width of the output, H' and W'.
        activation: see :func:`d2proj.layers.get_activation`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        output_size: tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.activation = get_activation(activation)
        inputs = in_channels * kernel_size**2
        height, width = output_size
        self.weight = nn.Parameter(torch.empty(height * width, out_channels, inputs))
        self.bias = nn.Parameter(torch.zeros(out_channels, height, width))
        bound = (2.0 / inputs) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        columns = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        x = torch.einsum("lfk,nkl->nfl", self.weight, columns)
        x = x.reshape(len(x), *self.bias.shape) + self.bias
        return x if self.activation is None else self.activation(x)
