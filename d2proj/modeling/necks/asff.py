"""Adaptively spatial feature fusion (Liu, Huang & Wang 2019)."""

from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.activation import Activation
from d2proj.layers.conv import conv_norm_act
from d2proj.layers.norm import NormFactory
from d2proj.modeling.necks.wrapper import LevelNeck, channels_of


class ASFF(LevelNeck):
    """Every level becomes a mixture of all, with weights of its own for every cell.

    Args:
        backbone: a backbone or neck.
        in_features: names of the levels, finest first, strides doubling; the paper has three.
        out_channels: of the levels; None: as they are (the paper's YOLOv3: twice as many).
        compress_channels: of the maps that the weights are made from; 16, or 8 beside an RFB.
        norm, activation: of all convolutions.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        out_channels: Sequence[int] | None = None,
        compress_channels: int = 16,
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        channels = channels_of(backbone, in_features, "ASFF")
        outputs = list(out_channels or channels)
        super().__init__(backbone=backbone, in_features=in_features, out_channels=outputs)
        self.fusions = nn.ModuleList(
            LevelFusion(
                channels,
                level,
                outputs[level],
                compress_channels=compress_channels,
                norm=norm,
                activation=activation,
            )
            for level in range(len(channels))
        )

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of all levels -> of all levels."""
        return [fusion(maps) for fusion in self.fusions]


class LevelFusion(nn.Module):
    """One level of :class:`ASFF` (section 3.2): resizes the others and adds them up.

    A finer map is halved by a 3x3 convolution of stride 2, after as many 3x3 max-poolings of stride
    2 as it is still too large; a coarser one is upsampled (nearest), after a 1x1 convolution if its
    channels are others.

    Args:
        in_channels: of all levels, finest first.
        level: which one this is.
        out_channels: of the result.
        compress_channels, norm, activation: as of :class:`ASFF`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        level: int,
        out_channels: int,
        *,
        compress_channels: int = 16,
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.level = level
        own = in_channels[level]

        def unit(channels: int, out: int, kernel_size: int, stride: int = 1) -> nn.Module:
            return conv_norm_act(
                channels, out, kernel_size, stride=stride, norm=norm, activation=activation
            )

        self.resize = nn.ModuleList()
        for source, channels in enumerate(in_channels):
            if source < level:
                self.resize.append(unit(channels, own, 3, 2))
            else:
                self.resize.append(nn.Identity() if channels == own else unit(channels, own, 1))
        self.compress = nn.ModuleList(unit(own, compress_channels, 1) for _ in in_channels)
        self.weigh = nn.Conv2d(compress_channels * len(in_channels), len(in_channels), 1)
        self.expand = unit(own, out_channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of all levels, finest first -> (N, out_channels, H, W) of this level's size."""
        size = maps[self.level].shape[2:]
        resized = []
        for source, (x, resize) in enumerate(zip(maps, self.resize, strict=True)):
            for _ in range(self.level - source - 1):
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            x = resize(x)
            resized.append(F.interpolate(x, size, mode="nearest") if source > self.level else x)
        votes = torch.cat([c(x) for c, x in zip(self.compress, resized, strict=True)], dim=1)
        shares = self.weigh(votes).softmax(dim=1)
        fused = torch.stack([x * shares[:, i, None] for i, x in enumerate(resized)]).sum(0)
        return self.expand(fused)
