"""YOLOv4's neck: spatial pyramid pooling on top, then a path down and a path up that concatenate.

Bochkovskiy et al. 2020, "YOLOv4", section 3.4 and figure 6 (path aggregation after Liu et al. 2018,
"PANet", with concatenation for addition); YOLOv4-CSP: Wang et al. 2021, "Scaled-YOLOv4", section
4.1.
Layers and their order are those of AlexeyAB/darknet's yolov4.cfg and yolov4-csp.cfg.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import SPP, Conv2d, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory
from d2proj.modeling.backbones.csp_darknet import stored_layers
from d2proj.modeling.necks.yolo import SPPTop, alternating

Norm = str | NormFactory | None
Act = str | Activation | None


class YOLOv4Top(nn.Sequential):
    """Three convolutions, spatial pyramid pooling, three convolutions (yolov4.cfg).

    Args:
        in_channels: of the map.
        channels: of the map that is pooled and of the result.
        kernel_sizes: of the poolings.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 512,
        kernel_sizes: Sequence[int] = (13, 9, 5),
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        top = SPPTop(
            in_channels=in_channels,
            channels=channels,
            kernel_sizes=kernel_sizes,
            norm=norm,
            activation=activation,
        )
        dims = [channels, 2 * channels, channels]
        super().__init__(
            *top, *alternating(top.out_channels, dims, norm=norm, activation=activation)
        )
        self.out_channels = channels


class CSPTop(nn.Module):
    """The same between two 1x1 paths, one of which goes past it (yolov4-csp.cfg).

    Args:
        in_channels, channels, kernel_sizes, norm, activation: see :class:`YOLOv4Top`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 512,
        kernel_sizes: Sequence[int] = (13, 9, 5),
        norm: Norm = "BN",
        activation: Act = "mish",
    ) -> None:
        super().__init__()
        self.out_channels = channels
        pooled = channels * (1 + len(kernel_sizes))
        # In the order of darknet's files.
        self.bypass = conv_norm_act(in_channels, channels, 1, norm=norm, activation=activation)
        self.through = nn.Sequential(
            *alternating(in_channels, [channels] * 3, norm=norm, activation=activation),
            SPP(kernel_sizes=kernel_sizes),
            *alternating(pooled, [channels] * 2, norm=norm, activation=activation),
        )
        self.join = conv_norm_act(2 * channels, channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, channels, H, W)."""
        return self.join(torch.cat([self.through(x), self.bypass(x)], dim=1))


def five_convs(
    in_channels: int, channels: int, *, norm: Norm = "BN", activation: Act = "leaky"
) -> nn.Sequential:
    """YOLOv4's block of a level: 1x1, 3x3, 1x1, 3x3, 1x1."""
    dims = [channels, 2 * channels, channels, 2 * channels, channels]
    return alternating(in_channels, dims, norm=norm, activation=activation)


class CSPConvs(nn.Module):
    """YOLOv4-CSP's block of a level: a 1x1 convolution, then a path of four and one past them.

    Args:
        in_channels: of the input.
        channels: of all convolutions and of the output.
        gate: what the two paths' maps (2 channels) go through before they are joined.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        gate: nn.Module | None = None,
        norm: Norm = "BN",
        activation: Act = "mish",
    ) -> None:
        super().__init__()
        # In the order of darknet's files.
        self.reduce = conv_norm_act(in_channels, channels, 1, norm=norm, activation=activation)
        self.bypass = conv_norm_act(channels, channels, 1, norm=norm, activation=activation)
        self.through = alternating(channels, [channels] * 4, norm=norm, activation=activation)
        self.gate = gate
        self.join = conv_norm_act(2 * channels, channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, channels, H, W)."""
        return self.finish(self.reduce(x))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the first convolution."""
        both = torch.cat([self.through(x), self.bypass(x)], dim=1)
        return self.join(both if self.gate is None else self.gate(both))


class YOLOPAN(Backbone):
    """YOLOv4's path aggregation; level ``p<k>`` has stride 2^k.

    From the coarsest level down, each finer map goes through a 1x1 convolution and is joined by the
    upsampled coarser result (through a 1x1 one, too); from the finest level up, each coarser result
    is joined by the finer one through a 3x3 convolution of stride 2. A block follows each time.

    Args:
        bottom_up: backbone whose maps are merged.
        in_features: names of its maps, finest first, each of twice the stride of the one before.
        channels: of the levels, finest first (128, 256, 512 as published).
        top_block: what the coarsest map goes through; has ``out_channels``.
        refine: what each level's final map goes through, one module after the other (attention,
            DropBlock); levels finest first.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    #: Makes the block of a level of its numbers of input and output channels.
    make_block: Callable[..., nn.Module] = staticmethod(five_convs)

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        channels: Sequence[int] = (128, 256, 512),
        top_block: YOLOv4Top | CSPTop,
        refine: Sequence[Sequence[nn.Module]] | None = None,
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        super().__init__()
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        strides = [shape.stride for shape in shapes]
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
            raise ValueError(f"YOLOPAN needs maps whose strides double, got {strides}")
        if len(channels) != len(shapes) or (refine and len(refine) != len(shapes)):
            raise ValueError(f"channels and refine must be of {len(shapes)} levels")

        def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
            return conv_norm_act(
                c_in, c_out, kernel, stride=stride, norm=norm, activation=activation
            )

        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.top_block = top_block
        self.reduce, self.lateral, self.down_blocks = (nn.ModuleList() for _ in range(3))
        # Both paths' modules in the order in which they run.
        above = top_block.out_channels
        for shape, own in list(zip(shapes, channels, strict=True))[-2::-1]:
            self.reduce.append(conv(above, own, 1))
            self.lateral.append(conv(shape.channels, own, 1))
            self.down_blocks.append(self.make_block(2 * own, own, norm=norm, activation=activation))
            above = own
        self.stride, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        coming = [*channels[1:-1], top_block.out_channels]
        for below, own, met in zip(channels, channels[1:], coming, strict=False):
            self.stride.append(conv(below, own, 3, stride=2))
            self.up_blocks.append(self.make_block(own + met, own, norm=norm, activation=activation))
        self.refine = nn.ModuleList(nn.Sequential(*parts) for parts in refine or [()] * len(shapes))
        self._shapes = {
            f"p{int(math.log2(shape.stride))}": ShapeSpec(channels=own, stride=shape.stride)
            for shape, own in zip(shapes, channels, strict=True)
        }
        self._size_divisibility = strides[-1]

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this for the levels to line up."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"p3": (N, channels[0], H/8, W/8), ...}``, finest first."""
        maps = self.bottom_up(x)
        *finer, coarsest = (maps[name] for name in self.in_features)
        x = self.top_block(coarsest)
        way = [x]
        steps = zip(finer[::-1], self.reduce, self.lateral, self.down_blocks, strict=True)
        for fine, reduce, lateral, block in steps:
            up = F.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = block(torch.cat([lateral(fine), up], dim=1))
            way.append(x)
        x = self.refine[0](x)
        found = [x]
        upward = zip(way[-2::-1], self.stride, self.up_blocks, self.refine[1:], strict=True)
        for met, stride, block, refine in upward:
            x = refine(block(torch.cat([stride(x), met], dim=1)))
            found.append(x)
        return dict(zip(self._shapes, found, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level, finest first."""
        return dict(self._shapes)

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The layers with weights in the order of darknet's files, those of the heads among them.

        Args:
            heads: one for each level, finest first.
        """
        yield from stored_layers(self.bottom_up)
        yield from stored_layers(self.top_block)
        for down in zip(self.reduce, self.lateral, self.down_blocks, strict=True):
            for part in down:
                yield from stored_layers(part)
        of_level = list(heads) or [nn.Identity() for _ in self.refine]
        yield from stored_layers(self.refine[0])
        yield from stored_layers(of_level[0])
        rest = zip(self.stride, self.up_blocks, self.refine[1:], of_level[1:], strict=True)
        for up in rest:
            for part in up:
                yield from stored_layers(part)


class CSPPAN(YOLOPAN):
    """:class:`YOLOPAN` of YOLOv4-CSP's blocks."""

    make_block = staticmethod(CSPConvs)
