"""Attention: maps multiplied by gates that they compute from themselves."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.activation import Activation, get_activation
from d2proj.layers.conv import Conv2d, conv_norm_act
from d2proj.layers.norm import NormFactory, get_norm


class SqueezeExcitation(nn.Module):
    """Gates channels by what their means say (Hu, Shen & Sun 2018, section 3).

    ``x * sigmoid(fc2(activation(fc1(mean over the map))))``; the layers are 1x1 convolutions.

    Args:
        channels: of the map.
        reduction: the hidden layer has ``channels / reduction`` units, at least one.
        activation: between the two layers; see :func:`d2proj.layers.get_activation`.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, activation: str | Activation | None = "relu"
    ) -> None:
        super().__init__()
        hidden = _hidden(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.activation = get_activation(activation)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        hidden = self.fc1(x.mean((2, 3), keepdim=True))
        hidden = hidden if self.activation is None else self.activation(hidden)
        return x * self.fc2(hidden).sigmoid()


class CBAM(nn.Module):
    """Gates channels, then cells (Woo et al. 2018, "CBAM", section 3).

    Channels: ``sigmoid(mlp(mean) + mlp(maximum))`` over the map, with a shared perceptron. Cells:
    the sigmoid of a convolution of the mean and the maximum over the channels.

    Args:
        channels: of the map.
        reduction: the perceptron's hidden layer has ``channels / reduction`` units.
        kernel_size: of the convolution over cells; odd.
        norm: after that convolution; the released code has batch normalisation there, the paper's
            formula none (``""``).
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        norm: str | NormFactory | None = "BN",
    ) -> None:
        super().__init__()
        hidden = _hidden(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.spatial = Conv2d(
            2, 1, kernel_size, padding=kernel_size // 2, bias=False, norm=get_norm(norm, 1)
        )

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        mean, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * (self._mlp(mean) + self._mlp(maximum)).sigmoid()
        cells = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.spatial(cells).sigmoid()


class PointwiseSAM(nn.Module):
    """YOLOv4's modified spatial attention: ``x * gate(conv1x1(x))``, without any pooling.

    Bochkovskiy et al. 2020, figure 5; in cfg files a 1x1 convolution with ``activation=logistic``
    and a ``[sam]`` layer.

    Args:
        channels: of the map.
        norm: of the convolution; see :func:`d2proj.layers.get_norm`.
        activation: the gate.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: str | NormFactory | None = "",
        activation: str | Activation | None = "logistic",
    ) -> None:
        super().__init__()
        self.conv = conv_norm_act(channels, channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x * self.conv(x)


def _hidden(channels: int, reduction: int) -> int:
    if reduction < 1:
        raise ValueError(f"reduction must be positive, got {reduction}")
    return max(1, channels // reduction)
