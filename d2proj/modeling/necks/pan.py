"""PANet's bottom-up path (Liu, Qi et al. 2018, section 3.1)."""

from collections.abc import Sequence

from detectron2.modeling import Backbone
from torch import Tensor, nn

from d2proj.layers.activation import Activation
from d2proj.layers.conv import Conv2d, conv_norm_act
from d2proj.layers.init import init_msra
from d2proj.layers.norm import NormFactory
from d2proj.modeling.necks.wrapper import LevelNeck, channels_of


class PAN(LevelNeck):
    """Adds a path from the finest level to the coarsest to a pyramid such as FPN's.

    ``N_1 = P_1``, ``N_{i+1} = act(conv3x3(P_{i+1} + act(conv3x3 of stride 2 (N_i))))``. (YOLOv4's
    modified path concatenates.)

    Args:
        backbone: a neck whose levels have the same number of channels.
        in_features: names of the levels, finest first, strides doubling.
        norm: of all convolutions.
        activation: the paper's ReLU.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        norm: str | NormFactory | None = "",
        activation: str | Activation | None = "relu",
    ) -> None:
        channels = channels_of(backbone, in_features, "PAN")
        if len(set(channels)) > 1:
            raise ValueError(f"PAN needs maps of the same number of channels, got {channels}")
        super().__init__(backbone=backbone, in_features=in_features, out_channels=channels)

        def unit(stride: int) -> Conv2d:
            conv = conv_norm_act(
                channels[0], channels[0], 3, stride=stride, norm=norm, activation=activation
            )
            init_msra(conv)
            return conv

        self.down = nn.ModuleList(unit(2) for _ in channels[1:])
        self.output = nn.ModuleList(unit(1) for _ in channels[1:])

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """P_1, P_2, ... -> N_1, N_2, ..."""
        merged = maps[:1]
        for x, down, output in zip(maps[1:], self.down, self.output, strict=True):
            merged.append(output(x + down(merged[-1])))
        return merged
