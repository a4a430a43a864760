"""The neck of AlexeyAB/darknet's yolov4-sam-mish-csp-reorg-bfm.cfg."""

from collections.abc import Iterable, Iterator

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, PointwiseSAM, SpaceToDepth, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory
from d2proj.layers.weighted_sum import add_maps
from d2proj.modeling.backbones.darknet import convolutions
from d2proj.modeling.necks.yolo_pan import CSPConvs, CSPTop

Norm = str | NormFactory | None
Act = str | Activation | None


class BFMPAN(Backbone):
    """YOLOv4-CSP's path aggregation in which every level also sees the next finer and coarser map.

    Finer maps come in by space-to-depth, coarser ones by nearest x2 upsampling, and the levels of
    the way down are added to the upsampled coarser ones as far as their channels reach. Each
    level's block ends in :class:`~d2proj.layers.PointwiseSAM`. Levels are ``p3``, ``p4``, ``p5``.

    Args:
        bottom_up: has maps ``c2`` to ``c5``
            (:class:`~d2proj.modeling.backbones.csp_darknet.TappedCSPDarknet`).
        top_block: what ``c5`` goes through.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        top_block: CSPTop,
        norm: Norm = "BN",
        activation: Act = "mish",
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        c2, c3, c4 = (shapes[name].channels for name in ("c2", "c3", "c4"))
        top = top_block.out_channels
        p3, p4, p5 = top // 4, top // 2, top

        def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
            return conv_norm_act(
                c_in, c_out, kernel, stride=stride, norm=norm, activation=activation
            )

        def level(in_channels: int, channels: int) -> CSPConvs:
            gate = PointwiseSAM(2 * channels, norm=norm)
            return CSPConvs(in_channels, channels, gate=gate, norm=norm, activation=activation)

        self.bottom_up = bottom_up
        self.top_block = top_block
        # In the order of darknet's files.
        self.shrink = conv(top, 2 * top, 3, stride=2)
        self.global_reduce = conv(2 * top, top, 1)
        self.lateral4_to5 = conv(c4, c4, 1)
        merged5 = 4 * c4 + 2 * top
        self.reduce5 = conv(merged5, p3, 1)
        self.lateral4 = conv(c4, c4, 1)
        self.lateral3_to4 = conv(c3, c3, 1)
        merged4 = 4 * c3 + c4 + p3
        self.block4 = CSPConvs(merged4, p4, norm=norm, activation=activation)
        self.reduce4 = conv(p4, p3, 1)
        self.lateral3 = conv(c3, c3, 1)
        self.lateral2_to3 = conv(c2, c2, 1)
        merged3 = 4 * c2 + c3 + p3
        self.reduce3 = conv(merged3, p3, 1)
        self.level3 = level(4 * c2 + p3, p3)
        self.stride4 = conv(p3, p4, 3, stride=2)
        self.level4 = level(4 * p3 + p4 + merged4, p4)
        self.stride5 = conv(p4, p5, 3, stride=2)
        self.level5 = level(4 * p4 + p5 + merged5, p5)
        self.deepen = SpaceToDepth(2)
        self._shapes = {
            "p3": ShapeSpec(channels=p3, stride=8),
            "p4": ShapeSpec(channels=p4, stride=16),
            "p5": ShapeSpec(channels=p5, stride=32),
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this: one map has stride 64."""
        return 64

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"p3": (N, C_3, H/8, W/8), "p4": ..., "p5": ...}``."""
        maps = self.bottom_up(x)
        c2, c3, c4 = maps["c2"], maps["c3"], maps["c4"]
        top = self.top_block(maps["c5"])

        whole = _twice(self.global_reduce(self.shrink(top)))
        merged5 = torch.cat([self.deepen(self.lateral4_to5(c4)), whole, top], dim=1)
        merged4 = torch.cat(
            [
                self.deepen(self.lateral3_to4(c3)),
                self.lateral4(c4),
                _twice(self.reduce5(merged5)),
            ],
            dim=1,
        )
        merged4 = add_maps((merged4, _twice(merged5)))
        merged3 = torch.cat(
            [
                self.deepen(self.lateral2_to3(c2)),
                self.lateral3(c3),
                _twice(self.reduce4(self.block4(merged4))),
            ],
            dim=1,
        )
        merged3 = self.reduce3(add_maps((merged3, _twice(merged4))))

        inner3 = self.level3.reduce(torch.cat([self.deepen(c2), merged3], dim=1))
        p3 = self.level3.finish(inner3)
        joined4 = torch.cat([self.deepen(inner3), self.stride4(p3), merged4], dim=1)
        inner4 = self.level4.reduce(joined4)
        p4 = self.level4.finish(inner4)
        joined5 = torch.cat([self.deepen(inner4), self.stride5(p4), merged5], dim=1)
        return {"p3": p3, "p4": p4, "p5": self.level5(joined5)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level, finest first."""
        return dict(self._shapes)

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, those of the heads among them.

        Args:
            heads: one for each level, finest first.
        """
        of_level = dict(zip((self.level3, self.level4, self.level5), heads, strict=False))
        for part in self.children():
            yield from convolutions(part)
            if part in of_level:
                yield from convolutions(of_level[part])


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
