"""The convolutions that end the networks of the YOLO family."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from d2proj.layers import Conv2d, conv_norm_act, get_activation
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory


class YOLOHead(nn.Module):
    """Of each level a 3x3 convolution and a 1x1 one, whose map a decoder reads.

    ``levels[i]`` is a Sequential of the two (of the 1x1 one where ``conv_dims[i]`` is 0).

    Args:
        in_channels: of each level's map.
        conv_dims: channels between the two convolutions; 0: the 1x1 convolution alone.
        num_anchors: of each cell.
        num_classes: C.
        box_values: values of an anchor besides the classes: 5, or 9 (Gaussian YOLO).
        prior_prob: objectness that an untrained head starts with; None: one half, as darknet.
        norm: of the 3x3 convolutions.
        activation: likewise.
        predictor_activation: of the 1x1 convolution: ``"logistic"`` for decoders with
            ``new_coords``.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        conv_dims: Sequence[int],
        num_anchors: int,
        num_classes: int,
        box_values: int = 5,
        prior_prob: float | None = None,
        norm: str | NormFactory | None = "BN",
        activation: str | Activation | None = "leaky",
        predictor_activation: str | Activation | None = None,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(conv_dims):
            raise ValueError(
                f"a YOLO head takes one conv_dims for each of its {len(in_channels)} levels, "
                f"got {len(conv_dims)}"
            )
        self.levels = nn.ModuleList()
        for channels, dims in zip(in_channels, conv_dims, strict=True):
            level = nn.Sequential()
            if dims:
                level.append(conv_norm_act(channels, dims, 3, norm=norm, activation=activation))
            predictor = Conv2d(
                dims or channels,
                num_anchors * (box_values + num_classes),
                1,
                activation=get_activation(predictor_activation),
            )
            level.append(predictor)
            if prior_prob is not None and predictor.bias is not None:
                bias = predictor.bias.detach().view(num_anchors, -1)
                bias[:, box_values - 1] = math.log(prior_prob / (1 - prior_prob))
            self.levels.append(level)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor]]:
        """Maps (N, C_i, H_i, W_i) -> ([(N, anchors * (box_values + classes), H_i, W_i), ...],)."""
        return ([level(x) for level, x in zip(self.levels, maps, strict=True)],)
