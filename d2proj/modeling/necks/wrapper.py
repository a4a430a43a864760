"""Necks around any backbone or neck: they change named levels and pass the others on."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn


class LevelNeck(Backbone):
    """Base: takes some maps of ``backbone``, gives maps of the same names and strides.

    Args:
        backbone: a backbone or neck.
        in_features: names of the maps, finest first.
        out_channels: channels of each map after this neck.
    """

    def __init__(
        self, *, backbone: Backbone, in_features: Sequence[str], out_channels: Sequence[int]
    ) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        unknown = [name for name in in_features if name not in shapes]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no map of the backbone, which has {list(shapes)}")
        self.backbone = backbone
        self.in_features = list(in_features)
        self._shapes = dict(shapes)
        for name, channels in zip(self.in_features, out_channels, strict=True):
            self._shapes[name] = ShapeSpec(channels=channels, stride=shapes[name].stride)

    @property
    def size_divisibility(self) -> int:
        """That of what is inside."""
        return self.backbone.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of what is inside."""
        return self.backbone.padding_constraints

    @abstractmethod
    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps ``in_features`` -> as many, each of the same size."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the backbone's maps, those of ``in_features`` changed."""
        maps = dict(self.backbone(x))
        merged = self.merge([maps[name] for name in self.in_features])
        maps.update(zip(self.in_features, merged, strict=True))
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return dict(self._shapes)


def channels_of(backbone: Backbone, in_features: Sequence[str], what: str) -> list[int]:
    """Channels of maps whose strides must double from one to the next.

    Raises:
        ValueError: they do not; ``what`` needs it.
    """
    shapes = backbone.output_shape()
    strides = [shapes[name].stride for name in in_features if name in shapes]
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(f"{what} needs maps whose strides double, got {strides} of {in_features}")
    return [shapes[name].channels for name in in_features if name in shapes]


class LevelBlocks(LevelNeck):
    """A block on each of some levels: attention, SPP, RFB, ASPP, ...

    Args:
        backbone: a backbone or neck.
        in_features: names of the levels.
        blocks: a module for each of them, that takes (N, C, H, W) and keeps H and W. One that gives
            another number of channels says so with an attribute ``out_channels``.
    """

    def __init__(
        self, *, backbone: Backbone, in_features: Sequence[str], blocks: Sequence[nn.Module]
    ) -> None:
        if len(blocks) != len(in_features):
            raise ValueError(f"{len(in_features)} levels take as many blocks, got {len(blocks)}")
        shapes = backbone.output_shape()
        super().__init__(
            backbone=backbone,
            in_features=in_features,
            out_channels=[
                getattr(block, "out_channels", shapes[name].channels if name in shapes else 0)
                for name, block in zip(in_features, blocks, strict=True)
            ],
        )
        self.blocks = nn.ModuleList(blocks)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """Each map through its block."""
        return [block(x) for block, x in zip(self.blocks, maps, strict=True)]
