"""What a part of a network says about its input or output."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Sizes of a feature map, as far as they are known before it is computed.

    ``stride`` is the number of image pixels per cell of the map.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
