"""What ends YOLOv1: fully connected layers, or convolutions for small data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, LocallyConnected2d, conv_norm_act, get_activation
from d2proj.layers.activation import Activation
from d2proj.layers.init import init_msra, init_normal
from d2proj.layers.norm import NormFactory


class YOLOv1Head(nn.Module):
    """From a map of side x side cells to all values of all cells (Redmon et al. 2016, section 2).

    ``levels[0]`` is a Sequential of the layers. The values are in darknet's order (see
    :class:`~d2proj.modeling.dense_heads.yolo.DetectionDecoder`), which is what released weights
    hold. A map of another size, of an image of another size than the network is made for, is first
    averaged (or repeated) to side x side cells, so that the grid always covers the whole image.

    Args:
        in_channels: of the map.
        side: cells along a side, S.
        boxes_per_cell: B.
        num_classes: C.
        fc_dims: outputs of the fully connected layers before the predicting one.
        local_channels: of a locally connected 3x3 layer before them, as in the released
            ``yolov1.cfg``; 0: none.
        dropout: before the predicting layer.
        activation: of all layers but the predicting one.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        side: int,
        boxes_per_cell: int,
        num_classes: int,
        fc_dims: Sequence[int] = (4096,),
        local_channels: int = 0,
        dropout: float = 0.5,
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.side = side
        level = nn.Sequential()
        if local_channels:
            level.append(
                LocallyConnected2d(
                    in_channels,
                    local_channels,
                    3,
                    output_size=(side, side),
                    padding=1,
                    activation=activation,
                )
            )
        level.append(nn.Flatten())
        features = (local_channels or in_channels) * side**2
        for outputs in fc_dims:
            hidden = nn.Linear(features, outputs)
            init_msra(hidden)
            level.append(hidden)
            level.append(_Activation(activation))
            features = outputs
        level.append(nn.Dropout(dropout))
        predictor = nn.Linear(features, side**2 * (num_classes + 5 * boxes_per_cell))
        init_normal(predictor, std=0.01)
        level.append(predictor)
        self.levels = nn.ModuleList([level])

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor]]:
        """[(N, C_in, H, W)] -> ([(N, side² * (C + 5 B))],)."""
        (x,) = maps
        return ([self.levels[0](_to_grid(x, self.side))],)


class YOLOv1ConvHead(nn.Module):
    """The same predictions by convolutions, whose weights all cells share.

    Not the paper's: fully connected layers see the whole image from every cell, but learn every
    place by itself, for which a small data set is too small. An untrained head predicts boxes of a
    quarter of the image's sides (0.5²) in the middle of each cell, without confidence.

    Args:
        in_channels: of the map.
        side: cells along a side, S.
        boxes_per_cell: B.
        num_classes: C.
        conv_dims: channels of a 3x3 convolution before the predicting 1x1 one.
        norm: of the 3x3 convolution.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        side: int,
        boxes_per_cell: int,
        num_classes: int,
        conv_dims: int,
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.side = side
        self.parts = [num_classes, boxes_per_cell, 4 * boxes_per_cell]
        predictor = Conv2d(conv_dims, sum(self.parts), 1)
        init_normal(predictor, std=0.01)
        # From zeros the few biases would take hundreds of steps to the middle of the cells.
        means = [(1 / num_classes, num_classes), (0.0, boxes_per_cell), (0.5, 4 * boxes_per_cell)]
        bias = torch.cat([torch.full((count,), mean) for mean, count in means])
        predictor.bias = nn.Parameter(bias)
        self.layers = nn.Sequential(
            conv_norm_act(in_channels, conv_dims, 3, norm=norm, activation=activation), predictor
        )

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor]]:
        """As :meth:`YOLOv1Head.forward`."""
        (x,) = maps
        values = self.layers(_to_grid(x, self.side)).permute(0, 2, 3, 1)
        parts = [part.flatten(1) for part in values.split(self.parts, dim=3)]
        return ([torch.cat(parts, dim=1)],)


def _to_grid(x: Tensor, side: int) -> Tensor:
    """(N, C, H, W) -> (N, C, side, side)."""
    return x if x.shape[2:] == (side, side) else F.adaptive_avg_pool2d(x, side)


class _Activation(nn.Module):
    def __init__(self, activation: str | Activation | None) -> None:
        super().__init__()
        self.function = get_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.function is None else self.function(x)
