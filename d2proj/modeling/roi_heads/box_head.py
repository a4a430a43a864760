"""From pooled features of a box to a vector."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_msra, init_xavier
from d2proj.layers.norm import NormFactory, get_norm


class FastRCNNConvFCHead(nn.Module):
    """3x3 convolutions, then fully connected layers, each with a ReLU (FPN: none and two of 1024).

    State-dict names are Detectron2's: ``conv1``, ..., ``fc1``, ``fc2``.

    Args:
        in_channels, pooler_size: channels and side of the pooled features.
        conv_dims, fc_dims: widths of the layers.
        conv_norm: normalisation of the convolutions (:func:`d2proj.layers.get_norm`).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        pooler_size: int,
        conv_dims: Sequence[int] = (),
        fc_dims: Sequence[int] = (1024, 1024),
        conv_norm: str | NormFactory | None = "",
    ) -> None:
        super().__init__()
        self.convs: list[str] = []
        self.fcs: list[str] = []
        for i, channels in enumerate(conv_dims, start=1):
            conv = Conv2d(
                in_channels,
                channels,
                3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, channels),
                activation=F.relu_,
            )
            init_msra(conv)
            self.convs.append(f"conv{i}")
            self.add_module(self.convs[-1], conv)
            in_channels = channels
        size = in_channels * pooler_size**2
        for i, channels in enumerate(fc_dims, start=1):
            fc = nn.Linear(size, channels)
            init_xavier(fc)
            self.fcs.append(f"fc{i}")
            self.add_module(self.fcs[-1], fc)
            size = channels
        self.out_features = size

    def forward(self, x: Tensor) -> Tensor:
        """(K, C, S, S) -> (K, out_features)."""
        for name in self.convs:
            x = getattr(self, name)(x)
        x = x.flatten(1)
        for name in self.fcs:
            x = F.relu_(getattr(self, name)(x))
        return x
