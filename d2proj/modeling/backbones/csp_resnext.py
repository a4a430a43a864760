"""CSPResNeXt-50 (Wang et al. 2020, "CSPNet"; YOLOv4, section 3.4, table 1).

Layers and their order are those of AlexeyAB/darknet's csresnext50-panet-spp-original-optimal.cfg.
"""

from collections.abc import Iterable, Iterator

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import conv_norm_act, get_activation
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory
from d2proj.layers.weighted_sum import add_maps
from d2proj.modeling.backbones.darknet import convolutions

Norm = str | NormFactory | None
Act = str | Activation | None


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions and a shortcut, the activation after the sum.

    Args:
        in_channels: of the input; if it has fewer than the output, it adds to its first channels.
        channels: of all convolutions.
        groups: of the 3x3 convolution.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        groups: int = 32,
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(in_channels, channels, 1, norm=norm, activation=activation)
        self.conv2 = conv_norm_act(
            channels, channels, 3, groups=groups, norm=norm, activation=activation
        )
        self.conv3 = conv_norm_act(channels, channels, 1, norm=norm, activation=None)
        self.activation = get_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        x = add_maps((self.conv3(self.conv2(self.conv1(x))), x))
        return x if self.activation is None else self.activation(x)


class CSPResNeXtStage(nn.Module):
    """Two 1x1 paths, one past the blocks and one through them, joined by a 1x1 convolution.

    Args:
        in_channels: of the input.
        enter_channels: where the path through the blocks begins.
        channels: of the blocks and of the path past them; the output has twice as many.
        num_blocks: how many blocks.
        path_activation: of the convolutions that begin the two paths.
        groups, norm, activation: see :class:`ResNeXtBlock`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        enter_channels: int,
        channels: int,
        num_blocks: int,
        path_activation: Act,
        groups: int = 32,
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        super().__init__()
        # In the order of darknet's files.
        self.bypass = conv_norm_act(in_channels, channels, 1, norm=norm, activation=path_activation)
        self.enter = conv_norm_act(
            in_channels, enter_channels, 1, norm=norm, activation=path_activation
        )
        self.blocks = nn.Sequential(
            *(
                ResNeXtBlock(
                    in_channels=channels if i else enter_channels,
                    channels=channels,
                    groups=groups,
                    norm=norm,
                    activation=activation,
                )
                for i in range(num_blocks)
            )
        )
        self.leave = conv_norm_act(channels, channels, 1, norm=norm, activation=activation)
        self.join = conv_norm_act(2 * channels, 2 * channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, 2 channels, H, W)."""
        through = self.leave(self.blocks(self.enter(x)))
        return self.join(torch.cat([through, self.bypass(x)], dim=1))


class CSPResNeXt50(Backbone):
    """A 7x7 convolution, a pooling, and the stages ``c2`` to ``c5``; ``c<k>`` has stride 2^k.

    ``c3``, ``c4``, ``c5`` (512, 1024, 2048 channels as published) are the maps.

    Args:
        in_channels: of the image.
        width: channels of the first convolution (64 as published).
        groups: of the grouped convolutions.
        norm, activation: of all convolutions.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: int = 64,
        groups: int = 32,
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        super().__init__()
        self.stem = conv_norm_act(in_channels, width, 7, stride=2, norm=norm, activation=activation)
        self._shapes = {}
        # The two stages in the middle begin their paths without an activation.
        paths = {2: activation, 3: None, 4: None, 5: activation}
        for k, blocks in ((2, 3), (3, 3), (4, 5), (5, 2)):
            channels = width * 2 ** (k - 1)
            stage = CSPResNeXtStage(
                in_channels=width if k == 2 else channels,
                enter_channels=width if k == 2 else channels,
                channels=channels,
                num_blocks=blocks,
                path_activation=paths[k],
                groups=groups,
                norm=norm,
                activation=activation,
            )
            if k > 2:
                down = conv_norm_act(
                    channels,
                    channels,
                    3,
                    stride=2,
                    groups=groups,
                    norm=norm,
                    activation=activation,
                )
                self.add_module(f"c{k}", nn.Sequential(down, stage))
                self._shapes[f"c{k}"] = ShapeSpec(channels=2 * channels, stride=2**k)
            else:
                self.add_module(f"c{k}", stage)

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"c3": (N, 8 width, H/8, W/8), "c4": ..., "c5": ...}``."""
        x = self.c2(F.max_pool2d(self.stem(x), 2))
        maps = {}
        for name in self._shapes:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, then those of the heads."""
        yield from convolutions(self)
        for head in heads:
            yield from convolutions(head)
