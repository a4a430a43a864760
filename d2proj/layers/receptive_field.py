"""Blocks that look at several sizes of surroundings at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.activation import Activation, get_activation
from d2proj.layers.conv import Conv2d, conv_norm_act
from d2proj.layers.norm import NormFactory, get_norm


class SPP(nn.Module):
    """YOLO's spatial pyramid pooling: maxima over windows of several sizes beside the map itself.

    The output's channels are those of the windows in the order given, then the map (darknet's
    order: 13, 9, 5, identity); its size is the input's.

    Args:
        kernel_sizes: sides of the windows, in cells; odd.
    """

    def __init__(self, kernel_sizes: Sequence[int] = (13, 9, 5)) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        if not self.kernel_sizes or any(k < 1 or k % 2 == 0 for k in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and positive, got {self.kernel_sizes}")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, (windows + 1) C, H, W)."""
        # The maximum over a large window is one over smaller ones' maxima: 5 of 5 of 5 is 13.
        pooled = {1: x}
        done = 1
        for size in sorted(set(self.kernel_sizes)):
            window = size - done + 1
            pooled[size] = F.max_pool2d(pooled[done], window, stride=1, padding=window // 2)
            done = size
        return torch.cat([*(pooled[size] for size in self.kernel_sizes), x], dim=1)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"kernel_sizes={self.kernel_sizes}"


class SPPBlock(nn.Module):
    """1x1 convolution, :class:`SPP`, 1x1 convolution, as YOLOv3-SPP and YOLOv4 have it.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        mid_channels: of the map that is pooled; None: half of ``in_channels``.
        kernel_sizes: see :class:`SPP`.
        norm, activation: of both convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        mid_channels: int | None = None,
        kernel_sizes: Sequence[int] = (13, 9, 5),
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        mid = mid_channels or max(1, in_channels // 2)
        pooled = mid * (len(kernel_sizes) + 1)
        self.reduce = conv_norm_act(in_channels, mid, 1, norm=norm, activation=activation)
        self.spp = SPP(kernel_sizes)
        self.merge = conv_norm_act(pooled, out_channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return self.merge(self.spp(self.reduce(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017, "DeepLabv3", section 3.3).

    A 1x1 convolution, a dilated 3x3 one for each rate and the map's mean through a 1x1 one, side by
    side, joined by another 1x1 convolution.

    Args:
        in_channels: of the input.
        out_channels: of each branch and of the output.
        rates: dilations, in cells: DeepLabv3's 6, 12, 18 are for maps of stride 16 and images of
            half a thousand pixels.
        dropout: share of the output's values that training drops (torchvision: 0.5).
        norm, activation: of all convolutions. The mean is one value a channel: a batch of one image
            has no variance to normalise it by, which is why a batch norm keeps its running
            statistics there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.0,
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "relu",
    ) -> None:
        super().__init__()
        self.out_channels = out_channels

        def unit(channels: int, kernel_size: int, rate: int = 1) -> Conv2d:
            return conv_norm_act(
                channels,
                out_channels,
                kernel_size,
                dilation=rate,
                norm=norm,
                activation=activation,
            )

        self.branches = nn.ModuleList(
            [unit(in_channels, 1), *(unit(in_channels, 3, rate) for rate in rates)]
        )
        self.image_pool = unit(in_channels, 1)
        self.project = unit(out_channels * (len(rates) + 2), 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        maps = [branch(x) for branch in self.branches]
        maps.append(self._pooled(x).expand_as(maps[0]))
        return self.dropout(self.project(torch.cat(maps, dim=1)))

    def _pooled(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, 1, 1)."""
        mean = x.mean((2, 3), keepdim=True)
        norm = self.image_pool.norm
        if len(x) > 1 or norm is None or not norm.training:
            return self.image_pool(mean)
        norm.eval()
        try:
            return self.image_pool(mean)
        finally:
            norm.train()


def rfb_norm(channels: int) -> nn.BatchNorm2d:
    """RFBNet's batch normalisation: running statistics take a hundredth of each batch."""
    return nn.BatchNorm2d(channels, momentum=0.01)


class _RFB(nn.Module):
    """Branches side by side, joined by a 1x1 convolution, times ``scale``, plus a shortcut."""

    def __init__(
        self,
        branches: Sequence[nn.Sequential],
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int,
        scale: float,
        norm: str | NormFactory | None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.scale = scale
        self.branches = nn.ModuleList(branches)
        self.linear = _unit(mid_channels, out_channels, 1, norm=norm, activation="")
        self.shortcut = _unit(in_channels, out_channels, 1, stride, norm=norm, activation="")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        joined = self.linear(torch.cat([branch(x) for branch in self.branches], dim=1))
        return F.relu(joined * self.scale + self.shortcut(x))


class RFB(_RFB):
    """Receptive field block (Liu, Huang & Wang 2018, figure 4a; RFBNet's ``BasicRFB``).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the block.
        visual: dilations of the three branches are ``visual``, ``visual + 1`` and ``2 visual + 1``.
        scale: of the joined branches before the shortcut is added.
        norm: of all convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        visual: int = 1,
        scale: float = 0.1,
        *,
        norm: str | NormFactory | None = rfb_norm,
    ) -> None:
        c = max(1, in_channels // 8)
        wide = max(1, c // 2 * 3)
        branches = [
            nn.Sequential(
                _unit(in_channels, 2 * c, 1, stride, norm=norm),
                _unit(2 * c, 2 * c, 3, dilation=visual, norm=norm, activation=""),
            ),
            nn.Sequential(
                _unit(in_channels, c, 1, norm=norm),
                _unit(c, 2 * c, 3, stride, norm=norm),
                _unit(2 * c, 2 * c, 3, dilation=visual + 1, norm=norm, activation=""),
            ),
            nn.Sequential(
                _unit(in_channels, c, 1, norm=norm),
                _unit(c, wide, 3, norm=norm),
                _unit(wide, 2 * c, 3, stride, norm=norm),
                _unit(2 * c, 2 * c, 3, dilation=2 * visual + 1, norm=norm, activation=""),
            ),
        ]
        super().__init__(branches, in_channels, 6 * c, out_channels, stride, scale, norm)


class RFBs(_RFB):
    """The block with smaller kernels for fine maps (figure 4b; RFBNet's ``BasicRFB_a``).

    Args:
        in_channels, out_channels, stride, scale, norm: as of :class:`RFB`. The released code
            strides two of the four branches only; here ``stride`` acts on all, so that it works.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        scale: float = 0.1,
        *,
        norm: str | NormFactory | None = rfb_norm,
    ) -> None:
        c = max(1, in_channels // 4)
        half, wide = max(1, c // 2), max(1, c // 4 * 3)

        def last(dilation: int) -> Conv2d:
            return _unit(c, c, 3, dilation=dilation, norm=norm, activation="")

        branches = [
            nn.Sequential(_unit(in_channels, c, 1, stride, norm=norm), last(1)),
            nn.Sequential(
                _unit(in_channels, c, 1, norm=norm), _unit(c, c, (3, 1), stride, norm=norm), last(3)
            ),
            nn.Sequential(
                _unit(in_channels, c, 1, norm=norm), _unit(c, c, (1, 3), stride, norm=norm), last(3)
            ),
            nn.Sequential(
                _unit(in_channels, half, 1, norm=norm),
                _unit(half, wide, (1, 3), norm=norm),
                _unit(wide, c, (3, 1), stride, norm=norm),
                last(5),
            ),
        ]
        super().__init__(branches, in_channels, 4 * c, out_channels, stride, scale, norm)


def _unit(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    *,
    dilation: int = 1,
    norm: str | NormFactory | None,
    activation: str | Activation | None = "relu",
) -> Conv2d:
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return Conv2d(
        in_channels,
        out_channels,
        (height, width),
        stride=stride,
        padding=(dilation * (height // 2), dilation * (width // 2)),
        dilation=dilation,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=get_activation(activation),
    )
