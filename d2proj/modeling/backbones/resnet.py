"""ResNet (He et al. 2016, "Deep residual learning for image recognition").

State-dict names are Detectron2's: ``stem.conv1``, ``res2.0.conv1``, ``res2.0.conv1.norm``,
``res2.0.shortcut``.
"""

from collections.abc import Sequence
from typing import Protocol, cast

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_msra
from d2proj.layers.norm import NormFactory, freeze, get_norm

Norm = str | NormFactory | None

# Blocks in res2..res5. 18 to 101 are the paper's table 1; 10 keeps one block a stage.
_BLOCKS_PER_STAGE = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}


class Strided(Protocol):
    """What a stem and a block tell of themselves."""

    stride: int
    out_channels: int


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm, relu: bool
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu_ if relu else None,
    )
    init_msra(conv)
    return conv


class BasicStem(nn.Module):
    """7x7 convolution of stride 2 and 3x3 max-pooling of stride 2: stride 4 in all."""

    stride = 4

    def __init__(self, *, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = _conv(in_channels, out_channels, 7, 2, norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/4, W/4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2: no pooling loses small objects, and half the arithmetic."""

    stride = 4

    def __init__(
        self, *, in_channels: int = 3, mid_channels: int, out_channels: int, norm: Norm = "BN"
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = _conv(in_channels, mid_channels, 3, 2, norm, relu=True)
        self.conv2 = _conv(mid_channels, out_channels, 3, 2, norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/4, W/4)."""
        return self.conv2(self.conv1(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18, -34)."""

    def __init__(
        self, *, in_channels: int, out_channels: int, stride: int = 1, norm: Norm = "BN"
    ) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride, norm, relu=True)
        self.conv2 = _conv(out_channels, out_channels, 3, 1, norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""
        y = self.conv2(self.conv1(x))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50, -101).

    Args:
        stride_in_1x1: the stride sits in the first 1x1 convolution (the original, and Detectron2's
            MSRA weights) instead of the 3x3 (torchvision's weights).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        stride: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, first, norm, relu=True)
        self.conv2 = _conv(bottleneck_channels, bottleneck_channels, 3, second, norm, relu=True)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, 1, norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""
        y = self.conv3(self.conv2(self.conv1(x)))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Conv2d | None:
    if in_channels == out_channels and stride == 1:
        return None
    return _conv(in_channels, out_channels, 1, stride, norm, relu=False)


def resnet_stages(
    *,
    depth: int,
    in_channels: int = 64,
    width: int = 64,
    norm: Norm = "BN",
    stride_in_1x1: bool = False,
) -> list[list[nn.Module]]:
    """The blocks of res2 to res5, at strides 1, 2, 2, 2 of the stem's output.

    Args:
        depth: 10, 18, 34 (basic blocks), 50, 101 (bottlenecks).
        in_channels: channels that the stem gives.
        width: channels inside the blocks of res2 (64 in the paper); doubled at each later stage.
        norm: see :func:`d2proj.layers.get_norm`.
        stride_in_1x1: see :class:`BottleneckBlock`; basic blocks have no such choice.

    Raises:
        ValueError: for a depth that is not in the table.
    """
    if depth not in _BLOCKS_PER_STAGE:
        raise ValueError(f"ResNet depth must be one of {sorted(_BLOCKS_PER_STAGE)}, got {depth}")
    stages: list[list[nn.Module]] = []
    for i, num_blocks in enumerate(_BLOCKS_PER_STAGE[depth]):
        channels = width * 2**i
        out_channels = channels if depth < 50 else 4 * channels
        blocks: list[nn.Module] = []
        for j in range(num_blocks):
            stride = 2 if i > 0 and j == 0 else 1
            if depth < 50:
                block: nn.Module = BasicBlock(
                    in_channels=in_channels, out_channels=out_channels, stride=stride, norm=norm
                )
            else:
                block = BottleneckBlock(
                    in_channels=in_channels,
                    out_channels=out_channels,
                    bottleneck_channels=channels,
                    stride=stride,
                    norm=norm,
                    stride_in_1x1=stride_in_1x1,
                )
            blocks.append(block)
            in_channels = out_channels
        stages.append(blocks)
    return stages


class ResNet(Backbone):
    """A stem and stages named ``res2``, ``res3``, ...

    Args:
        stem: module with ``stride`` and ``out_channels``.
        stages: lists of blocks, each with ``stride`` and ``out_channels`` (:func:`resnet_stages`).
        out_features: names of the maps to return, of ``"stem"``, ``"res2"``, ...; stages after the
            last of them are left out.
        freeze_at: 0 trains everything, 1 freezes the stem, 2 the stem and res2, and so on.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        names = ["stem"] + [f"res{i}" for i in range(2, 2 + len(stages))]
        unknown = set(out_features) - set(names)
        if unknown or not out_features:
            raise ValueError(f"out_features must name some of {names}, got {list(out_features)}")
        self._out_features = list(out_features)
        self.stem = stem
        first = cast(Strided, stem)
        stride, channels = first.stride, first.out_channels
        shapes = {"stem": ShapeSpec(channels=channels, stride=stride)}
        last = max(names.index(name) for name in out_features)
        self.stage_names = names[1 : last + 1]
        for name, blocks in zip(self.stage_names, stages, strict=False):
            self.add_module(name, nn.Sequential(*blocks))
            for block in cast(Sequence[Strided], blocks):
                stride, channels = stride * block.stride, block.out_channels
            shapes[name] = ShapeSpec(channels=channels, stride=stride)
        self._shapes = {name: shapes[name] for name in self._out_features}
        for name in names[:freeze_at]:
            if hasattr(self, name):
                freeze(getattr(self, name))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{name: map}`` for the names in ``out_features``."""
        maps = {"stem": self.stem(x)}
        x = maps["stem"]
        for name in self.stage_names:
            x = getattr(self, name)(x)
            maps[name] = x
        return {name: maps[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map that :meth:`forward` returns."""
        return dict(self._shapes)
