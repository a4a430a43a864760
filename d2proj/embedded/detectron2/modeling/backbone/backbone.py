"""The contract between a backbone and the detector that uses it."""

from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from detectron2.layers import ShapeSpec

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to named feature maps.

    Subclasses set ``_out_features`` (names), ``_out_feature_channels`` and
    ``_out_feature_strides`` (by name), or override ``output_shape``.
    """

    _out_features: Sequence[str]
    _out_feature_channels: Mapping[str, int]
    _out_feature_strides: Mapping[str, int]

    @abstractmethod
    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Feature maps by name.

        Args:
            images: (N, C, H, W), with H and W as ``padding_constraints`` ask.
        """

    @property
    def size_divisibility(self) -> int:
        """What the images' height and width must be multiples of; 0: any size does."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What ``ImageList.from_tensors`` must observe: ``size_divisibility``, ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map, by name."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }
