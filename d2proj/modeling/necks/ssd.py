"""SSD's maps: some of the trunk's, and ever coarser ones made from the last (Liu et al. 2016)."""

from collections.abc import Sequence
from typing import Protocol, cast

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_xavier
from d2proj.layers.norm import NormFactory, get_norm


class _Block(Protocol):
    """What a block says of itself."""

    out_channels: int
    stride: int


class ExtraLayer(nn.Module):
    """1x1 convolution, then one of ``kernel_size``, a ReLU after each (SSD, figure 2).

    Args:
        in_channels: of the input.
        mid_channels: between the two.
        out_channels: of the output.
        kernel_size, stride, padding: of the second convolution.
        norm: of both (:func:`d2proj.layers.get_norm`); the published has none.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 1,
        norm: str | NormFactory | None = "",
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.conv1 = Conv2d(
            in_channels,
            mid_channels,
            1,
            bias=not norm,
            norm=get_norm(norm, mid_channels),
            activation=F.relu_,
        )
        self.conv2 = Conv2d(
            mid_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            bias=not norm,
            norm=get_norm(norm, out_channels),
            activation=F.relu_,
        )
        for conv in (self.conv1, self.conv2):
            init_xavier(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        return self.conv2(self.conv1(x))


class SSDNeck(Backbone):
    """Maps of a trunk, adapted, and a chain of blocks behind the last of them.

    Args:
        bottom_up: the trunk.
        in_features: names of its maps, finest first.
        adapters: for each of them a module whose output stands for it (L2Norm in SSD, a receptive
            field block in RFBNet), or None for the map itself. It has ``out_channels`` and keeps
            the size. The chain goes on from what stands for the last map.
        extra_blocks: the chain; each takes the map before and has ``out_channels`` and ``stride``.
            Their maps are called ``extra1``, ``extra2``, ...
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        adapters: Sequence[nn.Module | None],
        extra_blocks: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        if len(in_features) != len(adapters):
            raise ValueError(
                f"an SSD neck takes an adapter (or None) for each of {list(in_features)}, "
                f"got {len(adapters)}"
            )
        self.in_features = list(in_features)
        self.bottom_up = bottom_up
        self.adapters = nn.ModuleList(module or nn.Identity() for module in adapters)
        self.extra_blocks = nn.ModuleList(extra_blocks)
        trunk = bottom_up.output_shape()
        self._shapes: dict[str, ShapeSpec] = {}
        stride = 1
        for name, module in zip(self.in_features, adapters, strict=True):
            channels, stride = trunk[name].channels, trunk[name].stride
            if module is not None:
                channels = cast(_Block, module).out_channels
            self._shapes[name] = ShapeSpec(channels=channels, stride=stride)
        for i, block in enumerate(cast(Sequence[_Block], extra_blocks), start=1):
            stride *= block.stride
            self._shapes[f"extra{i}"] = ShapeSpec(channels=block.out_channels, stride=stride)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> maps by name, finest first."""
        trunk = self.bottom_up(x)
        maps = {
            name: adapt(trunk[name])
            for name, adapt in zip(self.in_features, self.adapters, strict=True)
        }
        last = maps[self.in_features[-1]]
        for i, block in enumerate(self.extra_blocks, start=1):
            last = block(last)
            maps[f"extra{i}"] = last
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map; strides as the convolutions have them.

        SSD300's last two maps have no padding: their cells are 100 and 300 pixels apart in the
        paper's tiling of the image, which the default boxes follow.
        """
        return dict(self._shapes)
