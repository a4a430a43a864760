"""Feature pyramid network (Lin et al. 2017, "Feature pyramid networks for object detection")."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_xavier
from d2proj.layers.norm import NormFactory, get_norm


class FPN(Backbone):
    """Lateral 1x1 convolutions, a top-down path of nearest x2 upsampling and addition, 3x3 outputs.

    Level ``p<k>`` has stride 2^k. State-dict names are Detectron2's (``fpn_lateral3``,
    ``fpn_output3``, ``top_block.p6``).

    Args:
        bottom_up: backbone whose maps are merged.
        in_features: names of its maps, finest first, each of twice the stride of the one before.
        out_channels: channels of every level.
        norm: normalisation of the convolutions (:func:`d2proj.layers.get_norm`).
        top_block: makes coarser levels; has ``num_levels`` and ``in_feature``, the name of a
            bottom-up map or of a pyramid level.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str | NormFactory | None = "",
        top_block: "TopBlock | None" = None,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
            raise ValueError(f"FPN needs maps whose strides double, got {strides} of {in_features}")
        self.in_features = list(in_features)
        self.bottom_up = bottom_up
        self.top_block = top_block
        self._levels = [int(math.log2(stride)) for stride in strides]
        for name, level in zip(self.in_features, self._levels, strict=True):
            lateral = _conv(shapes[name].channels, out_channels, 1, norm)
            output = _conv(out_channels, out_channels, 3, norm)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        extra = top_block.num_levels if top_block is not None else 0
        levels = self._levels + [self._levels[-1] + 1 + i for i in range(extra)]
        self._shapes = {f"p{k}": ShapeSpec(channels=out_channels, stride=2**k) for k in levels}
        self._size_divisibility = strides[-1]

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this for the levels to line up."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"p2": (N, out_channels, H/4, W/4), ...}``, finest first."""
        bottom_up = self.bottom_up(x)
        merged: Tensor | None = None
        outputs: dict[str, Tensor] = {}
        for name, level in zip(reversed(self.in_features), reversed(self._levels), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            merged = lateral if merged is None else _add_upsampled(lateral, merged)
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
        outputs = dict(reversed(outputs.items()))
        if self.top_block is not None:
            source = self.top_block.in_feature
            top = self.top_block(bottom_up[source] if source in bottom_up else outputs[source])
            outputs.update(zip(list(self._shapes)[len(self._levels) :], top, strict=True))
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return dict(self._shapes)


def _conv(
    in_channels: int, out_channels: int, kernel: int, norm: str | NormFactory | None
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
    )
    init_xavier(conv)
    return conv


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """``fine + nearest x2 upsampling of coarse``; ``fine`` (N, C, 2H, 2W) is overwritten."""
    fine += F.interpolate(coarse, scale_factor=2.0, mode="nearest")
    return fine


class TopBlock(nn.Module):
    """Makes levels coarser than the last, from the map called ``in_feature``."""

    num_levels: int
    in_feature: str

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> ``num_levels`` maps, each of half the size of the one before."""


class LastLevelMaxPool(TopBlock):
    """P6 is every second value of P5, as Faster R-CNN with FPN has it."""

    num_levels = 1

    def __init__(self, *, in_feature: str = "p5") -> None:
        super().__init__()
        self.in_feature = in_feature

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> one map of half the size."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(TopBlock):
    """P6 and P7 by 3x3 convolutions of stride 2, a ReLU between them (RetinaNet, footnote 2).

    Args:
        in_feature: what P6 is made from: ``"res5"`` (the paper, Detectron2) or ``"p5"``
            (torchvision).
        in_channels: channels of that map.
    """

    num_levels = 2

    def __init__(self, *, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            init_xavier(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) -> maps of a half and a quarter of the size."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]
