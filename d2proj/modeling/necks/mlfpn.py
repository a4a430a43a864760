"""M2Det's multi-level feature pyramid network (Zhao, Sheng et al. 2019, section 3)."""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.attention import SqueezeExcitation
from d2proj.layers.conv import conv_norm_act
from d2proj.layers.norm import NormFactory
from d2proj.modeling.necks.wrapper import channels_of


class SFAM(nn.Module):
    """Scale-wise feature aggregation: all pyramids' maps of a scale, joined and gated.

    Every scale has a squeeze-and-excitation of its own (M2Det's released code lists one module as
    often as there are scales, so that they share its weights).

    Args:
        channels: of each map.
        num_pyramids: how many pyramids there are.
        num_scales: maps of each.
        reduction: see :class:`~d2proj.layers.SqueezeExcitation`.
    """

    def __init__(
        self, channels: int, *, num_pyramids: int, num_scales: int, reduction: int = 16
    ) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            SqueezeExcitation(channels * num_pyramids, reduction=reduction)
            for _ in range(num_scales)
        )

    def forward(self, pyramids: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """For each pyramid its maps (N, C, H_s, W_s) -> a map (N, pyramids * C, H_s, W_s) each."""
        scales = zip(*pyramids, strict=True)
        return [gate(torch.cat(maps, 1)) for gate, maps in zip(self.gates, scales, strict=True)]


class TUM(nn.Module):
    """Thinned U-shape module: a pyramid made from one map (figure 4c).

    Down by 3x3 convolutions of stride 2, back up by nearest upsampling and addition of what 3x3
    convolutions make of the way down, a 1x1 convolution on each result. All convolutions but the
    last have ``2 * channels`` channels. Odd sizes are rounded up; the released code ends in a 3x3
    convolution without padding, for 3 x 3 -> 1 x 1.

    Args:
        in_channels: of the map.
        channels: of the pyramid's maps.
        num_scales: how many.
        norm: of all convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        num_scales: int,
        norm: str | NormFactory | None = "BN",
    ) -> None:
        super().__init__()
        inside = [in_channels, *[2 * channels] * (num_scales - 1)]

        def unit(before: int, after: int, kernel_size: int, stride: int = 1) -> nn.Module:
            return conv_norm_act(
                before, after, kernel_size, stride=stride, norm=norm, activation="relu"
            )

        self.down = nn.ModuleList(unit(c, 2 * channels, 3, 2) for c in inside[:-1])
        self.top = unit(inside[-1], 2 * channels, 1)
        self.lateral = nn.ModuleList(unit(c, 2 * channels, 3) for c in inside[:-1])
        self.smooth = nn.ModuleList(unit(2 * channels, channels, 1) for _ in inside)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> (N, channels, H / 2^i, W / 2^i), i from 0."""
        before = []
        for down in self.down:
            before.append(x)
            x = down(x)
        results = [self.top(x)]
        for fine, lateral in zip(reversed(before), reversed(self.lateral), strict=True):
            coarse = F.interpolate(results[0], fine.shape[2:], mode="nearest")
            results.insert(0, lateral(fine) + coarse)
        return [smooth(x) for smooth, x in zip(self.smooth, results, strict=True)]


class MLFPN(Backbone):
    """Pyramids in a row, each made from the base map and the last one's finest, joined by SFAM.

    The base map joins two maps of the backbone (FFMv1): a 3x3 convolution of the finer one and a
    1x1 one of the coarser, upsampled. Pyramid k > 1 starts from the base map through a 1x1
    convolution beside the finest map of pyramid k - 1 (FFMv2).

    Args:
        bottom_up: backbone.
        in_features: names of two of its maps, finer first, the second of twice the first's stride.
        out_levels: names of the levels, finest first; the first has the finer map's stride.
        out_channels: of every level: as many times ``out_channels / num_pyramids`` as pyramids.
        num_pyramids: how many pyramids.
        base_channels: of the base map's two parts.
        norm: of all convolutions but the gates.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_levels: Sequence[str],
        out_channels: int = 1024,
        num_pyramids: int = 8,
        base_channels: Sequence[int] = (256, 512),
        norm: str | NormFactory | None = "BN",
    ) -> None:
        super().__init__()
        if len(in_features) != 2:
            raise ValueError(f"MLFPN joins two maps, got {list(in_features)}")
        if out_channels % num_pyramids:
            raise ValueError(
                f"out_channels must be a multiple of the {num_pyramids} pyramids, "
                f"got {out_channels}"
            )
        channels = out_channels // num_pyramids
        fine, coarse = channels_of(bottom_up, in_features, "MLFPN")
        stride = bottom_up.output_shape()[in_features[0]].stride
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self._shapes = {
            name: ShapeSpec(channels=out_channels, stride=stride * 2**i)
            for i, name in enumerate(out_levels)
        }
        self.base_fine = conv_norm_act(fine, base_channels[0], 3, norm=norm, activation="relu")
        self.base_coarse = conv_norm_act(coarse, base_channels[1], 1, norm=norm, activation="relu")
        base = sum(base_channels)
        starts = [2 * channels, *[channels] * (num_pyramids - 1)]
        self.starts = nn.ModuleList(
            conv_norm_act(base, c, 1, norm=norm, activation="relu") for c in starts
        )
        self.pyramids = nn.ModuleList(
            TUM(2 * channels, channels, num_scales=len(out_levels), norm=norm) for _ in starts
        )
        self.sfam = SFAM(channels, num_pyramids=num_pyramids, num_scales=len(out_levels))

    @property
    def size_divisibility(self) -> int:
        """Twice the finer map's stride, and what the backbone asks for."""
        own = 2 * next(iter(self._shapes.values())).stride
        return max(own, self.bottom_up.size_divisibility)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the levels, finest first."""
        maps = self.bottom_up(x)
        fine = self.base_fine(maps[self.in_features[0]])
        coarse = self.base_coarse(maps[self.in_features[1]])
        base = torch.cat([fine, F.interpolate(coarse, fine.shape[2:], mode="nearest")], dim=1)
        pyramids: list[list[Tensor]] = []
        for start, pyramid in zip(self.starts, self.pyramids, strict=True):
            x = start(base)
            pyramids.append(pyramid(torch.cat([x, pyramids[-1][0]], 1) if pyramids else x))
        return dict(zip(self._shapes, self.sfam(pyramids), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return dict(self._shapes)
