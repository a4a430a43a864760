"""The necks of YOLOv2 (passthrough) and YOLOv3 (a pyramid that concatenates)."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import SPP, Reorg, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory
from d2proj.modeling.backbones.darknet import Darknet, convolutions

Norm = str | NormFactory | None


def alternating(
    in_channels: int,
    dims: Sequence[int],
    *,
    norm: Norm = "BN",
    activation: str | Activation | None = "leaky",
) -> nn.Sequential:
    """Convolutions of these many channels, 1x1 and 3x3 in turn."""
    layers = []
    for i, channels in enumerate(dims):
        size = 3 if i % 2 else 1
        layers.append(conv_norm_act(in_channels, channels, size, norm=norm, activation=activation))
        in_channels = channels
    return nn.Sequential(*layers)


class SPPTop(nn.Sequential):
    """Three convolutions, then spatial pyramid pooling (yolov3-spp.cfg).

    Args:
        in_channels: of the map.
        channels: of the map that is pooled; four times as many come out.
        kernel_sizes: of the poolings.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        kernel_sizes: Sequence[int] = (13, 9, 5),
        norm: Norm = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        dims = [channels, 2 * channels, channels]
        convs = alternating(in_channels, dims, norm=norm, activation=activation)
        super().__init__(*convs, SPP(kernel_sizes=kernel_sizes))
        self.out_channels = channels * (1 + len(kernel_sizes))


class YOLOFPN(Backbone):
    """YOLOv3's pyramid (section 2.3): upsampled maps stand beside finer ones, nothing is added.

    From the coarsest level on, each level is a few convolutions; a 1x1 convolution halves the
    channels of its result, and nearest x2 upsampling of that goes in front of the channels of the
    next finer map. Level ``p<k>`` has stride 2^k.

    Args:
        bottom_up: backbone whose maps are merged.
        in_features: names of its maps, finest first, each of twice the stride of the one before.
        dims: channels of each level's convolutions, 1x1 and 3x3 in turn, finest first; a level
            without any is the concatenation itself.
        top_block: what the coarsest map goes through first; has ``out_channels``
            (:class:`SPPTop`).
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        bottom_up: Darknet,
        in_features: Sequence[str],
        dims: Sequence[Sequence[int]],
        top_block: SPPTop | None = None,
        norm: Norm = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        strides = [shape.stride for shape in shapes]
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
            raise ValueError(f"YOLOFPN needs maps whose strides double, got {strides}")
        if len(dims) != len(in_features):
            raise ValueError(f"dims must be of {len(in_features)} levels, got {len(dims)}")
        self.in_features = list(in_features)
        self.bottom_up = bottom_up
        self.top_block = top_block
        self.laterals = nn.ModuleList()
        self.blocks = nn.ModuleList()
        self._names = [f"p{int(math.log2(stride))}" for stride in strides]
        self._size_divisibility = strides[-1]
        self._shapes: dict[str, ShapeSpec] = {}
        channels = 0
        # From coarse to fine, as darknet stores them.
        for name, shape, own in zip(self._names[::-1], shapes[::-1], dims[::-1], strict=True):
            incoming = shape.channels
            if channels:
                lateral = conv_norm_act(
                    channels, channels // 2, 1, norm=norm, activation=activation
                )
                self.laterals.append(lateral)
                incoming += channels // 2
            elif top_block is not None:
                incoming = top_block.out_channels
            self.blocks.append(alternating(incoming, own, norm=norm, activation=activation))
            channels = own[-1] if own else incoming
            self._shapes[name] = ShapeSpec(channels=channels, stride=shape.stride)

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this for the levels to line up."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"p3": (N, C_3, H/8, W/8), ...}``, finest first."""
        maps = self.bottom_up(x)
        *finer, coarsest = (maps[name] for name in self.in_features)
        x = self.blocks[0](coarsest if self.top_block is None else self.top_block(coarsest))
        found = [x]
        for fine, lateral, block in zip(finer[::-1], self.laterals, self.blocks[1:], strict=True):
            up = F.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = block(torch.cat([up, fine], dim=1))
            found.append(x)
        return dict(zip(self._names, found[::-1], strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level, finest first."""
        return {name: self._shapes[name] for name in self._names}

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, those of the heads among them.

        Args:
            heads: one for each level, finest first.
        """
        yield from self.bottom_up.darknet_layers()
        if self.top_block is not None:
            yield from convolutions(self.top_block)
        of_level = list(heads)[::-1]
        for i, block in enumerate(self.blocks):
            if i:
                yield from convolutions(self.laterals[i - 1])
            yield from convolutions(block)
            if of_level:
                yield from convolutions(of_level[i])


class Passthrough(Backbone):
    """YOLOv2's neck (section 2, "fine-grained features"): one map ``p<k>``, of the coarser stride.

    Two 3x3 convolutions over the coarse map; a 1x1 convolution over the fine one, whose cells then
    become channels (:class:`d2proj.layers.Reorg`) and go in front of the others.

    Args:
        bottom_up: backbone with both maps.
        in_features: names of the fine map and of the coarse one, of twice its stride.
        channels: of the 3x3 convolutions.
        passthrough_channels: of the 1x1 convolution; four times as many are concatenated.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        bottom_up: Darknet,
        in_features: Sequence[str],
        channels: int = 1024,
        passthrough_channels: int = 64,
        norm: Norm = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        fine, coarse = (bottom_up.output_shape()[name] for name in in_features)
        if coarse.stride != 2 * fine.stride:
            raise ValueError(
                f"Passthrough needs maps whose strides double, got {fine.stride}, {coarse.stride}"
            )
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.coarse = nn.Sequential(
            conv_norm_act(coarse.channels, channels, 3, norm=norm, activation=activation),
            conv_norm_act(channels, channels, 3, norm=norm, activation=activation),
        )
        self.fine = conv_norm_act(
            fine.channels, passthrough_channels, 1, norm=norm, activation=activation
        )
        self.reorg = Reorg(2)
        self._name = f"p{int(math.log2(coarse.stride))}"
        self._shape = ShapeSpec(channels=channels + 4 * passthrough_channels, stride=coarse.stride)

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this for both maps to line up."""
        return self.bottom_up.size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"p5": (N, channels + 4 * passthrough_channels, H/32, W/32)}``."""
        maps = self.bottom_up(x)
        fine, coarse = (maps[name] for name in self.in_features)
        return {self._name: torch.cat([self.reorg(self.fine(fine)), self.coarse(coarse)], dim=1)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the map."""
        return {self._name: self._shape}

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, then those of the heads."""
        yield from self.bottom_up.darknet_layers()
        yield from convolutions(self.coarse)
        yield self.fine
        for head in heads:
            yield from convolutions(head)
