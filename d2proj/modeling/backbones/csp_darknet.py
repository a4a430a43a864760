"""CSPDarknet53 (Bochkovskiy et al. 2020, "YOLOv4", section 3.4) and its relatives.

Cross-stage partial networks (Wang et al. 2020, "CSPNet"): half of a stage's channels go through its
blocks, the other half past them. Layers, widths and their order are those of AlexeyAB/darknet's
``yolov4.cfg``, ``yolov4-csp.cfg`` and ``yolov4-tiny.cfg``. The stages are for
:class:`~d2proj.modeling.backbones.darknet.Darknet`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, WeightedSum, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory
from d2proj.modeling.backbones.darknet import DarknetResidual, convolutions

Norm = str | NormFactory | None
Act = str | Activation | None


def stored_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers inside a module that darknet stores, in the order in which they were made."""
    return (m for m in module.modules() if isinstance(m, Conv2d | WeightedSum))


class WeightedResidual(DarknetResidual):
    """A residual block whose two addends have learned weights.

    Multi-input weighted residual connections (YOLOv4, section 3.4), darknet's
    ``weights_type=per_feature`` with ``weights_normalization=relu``.

    Args:
        channels, hidden_channels, norm, activation: see
            :class:`~d2proj.modeling.backbones.darknet.DarknetResidual`.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        *,
        norm: Norm = "BN",
        activation: Act = "mish",
    ) -> None:
        super().__init__(channels, hidden_channels, norm=norm, activation=activation)
        self.sum = WeightedSum(2, normalization="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return cast(Tensor, self.sum(self.conv2(self.conv1(x)), x))


class CSPStage(nn.Module):
    """A 3x3 convolution of stride 2; a 1x1 path past the blocks and one through them; both joined.

    Args:
        in_channels, out_channels: of the stage.
        num_blocks: how many residual blocks.
        branch_channels: of each of the two paths.
        hidden_channels: inside the blocks.
        residual: makes a block of ``(channels, hidden_channels)``.
        regularizer: what the output goes through (DropBlock).
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        branch_channels: int,
        hidden_channels: int,
        residual: Callable[..., nn.Module] = DarknetResidual,
        regularizer: nn.Module | None = None,
        norm: Norm = "BN",
        activation: Act = "mish",
    ) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
            return conv_norm_act(
                c_in, c_out, kernel, stride=stride, norm=norm, activation=activation
            )

        # In the order of darknet's files.
        self.down = conv(in_channels, out_channels, 3, stride=2)
        self.bypass = conv(out_channels, branch_channels, 1)
        self.enter = conv(out_channels, branch_channels, 1)
        self.blocks = nn.Sequential(
            *(
                residual(branch_channels, hidden_channels, norm=norm, activation=activation)
                for _ in range(num_blocks)
            )
        )
        self.leave = conv(branch_channels, branch_channels, 1)
        self.join = conv(2 * branch_channels, out_channels, 1)
        self.regularizer = regularizer

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H/2, W/2)."""
        return self.tapped(x)[0]

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and what comes into the last block: (N, branch_channels, H/2, W/2)."""
        x = self.down(x)
        before = self.blocks[:-1](self.enter(x))
        through = self.leave(self.blocks[-1](before))
        x = self.join(torch.cat([through, self.bypass(x)], dim=1))
        return x if self.regularizer is None else self.regularizer(x), before


def csp_darknet53_stages(
    *,
    in_channels: int = 3,
    width: int = 32,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    residual: Callable[..., nn.Module] = DarknetResidual,
    regularizers: Sequence[nn.Module | None] = (None, None, None, None, None),
    norm: Norm = "BN",
    activation: Act = "mish",
) -> list[nn.Module]:
    """The stages of CSPDarknet53; both paths of the first one keep all channels.

    Args:
        in_channels: of the image.
        width: channels of ``c0``; doubled at each later stage.
        blocks: residual blocks of ``c1``, ``c2``, ...
        residual: see :class:`CSPStage`.
        regularizers: of ``c1``, ``c2``, ...; see :class:`CSPStage`.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """
    stem = conv_norm_act(in_channels, width, 3, norm=norm, activation=activation)
    stages: list[nn.Module] = [stem]
    for i, (count, regularizer) in enumerate(zip(blocks, regularizers, strict=True)):
        stages.append(
            CSPStage(
                in_channels=width,
                out_channels=2 * width,
                num_blocks=count,
                branch_channels=width if i else 2 * width,
                hidden_channels=width,
                residual=residual,
                regularizer=regularizer,
                norm=norm,
                activation=activation,
            )
        )
        width *= 2
    return stages


def miwrc_csp_darknet53_stages(**options: Any) -> list[nn.Module]:
    """:func:`csp_darknet53_stages` of :class:`WeightedResidual` blocks, as the YOLOv4 paper has it.

    Args:
        **options: see :func:`csp_darknet53_stages`.
    """
    return csp_darknet53_stages(residual=WeightedResidual, **options)


def yolov4_csp_stages(
    *,
    in_channels: int = 3,
    width: int = 32,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    norm: Norm = "BN",
    activation: Act = "mish",
) -> list[nn.Module]:
    """The stages of YOLOv4-CSP (Wang et al. 2021, "Scaled-YOLOv4", section 4.1).

    CSPDarknet53's, but for the first, which is an ordinary residual one.

    Args:
        in_channels: of the image.
        width: channels of ``c0``; doubled at each later stage.
        blocks: residual blocks of ``c1``, ``c2``, ...
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """
    stages = csp_darknet53_stages(
        in_channels=in_channels, width=width, blocks=blocks, norm=norm, activation=activation
    )
    first = conv_norm_act(width, 2 * width, 3, stride=2, norm=norm, activation=activation)
    residuals = [
        DarknetResidual(2 * width, width, norm=norm, activation=activation)
        for _ in range(blocks[0])
    ]
    stages[1] = nn.Sequential(first, *residuals)
    return stages


class TappedCSPDarknet(Backbone):
    """CSPDarknet53 whose finer maps are taken inside their stages, before the last block.

    So does yolov4-sam-mish-csp-reorg-bfm.cfg. ``c2``, ``c3``, ``c4`` have the channels of a stage's
    path through the blocks (64, 128, 256 as published); ``c5`` is the last stage's output.

    Args:
        stages: the stem and five :class:`CSPStage` (:func:`csp_darknet53_stages`).
    """

    def __init__(self, *, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        *tapped, last = cast("list[CSPStage]", list(stages)[2:])
        channels = [stage.leave.out_channels for stage in tapped] + [last.join.out_channels]
        self._shapes = {
            f"c{k}": ShapeSpec(channels=count, stride=2**k)
            for k, count in enumerate(channels, start=2)
        }

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this for every cell to be of the same size."""
        return 2 ** (len(self.stages) - 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{"c2": (N, C_2, H/4, W/4), ..., "c5": (N, C_5, H/32, W/32)}``."""
        maps = {}
        for k, stage in enumerate(self.stages):
            if k < 2:
                x = stage(x)
            else:
                x, maps[f"c{k}"] = cast(CSPStage, stage).tapped(x)
        maps[f"c{len(self.stages) - 1}"] = x
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)


class TinyCSPBlock(nn.Module):
    """YOLOv4-tiny's block: a 3x3 convolution, whose second half of channels goes through two more.

    Args:
        in_channels: of the input.
        channels: of the convolutions; the output has twice as many.
        norm, activation: of the convolutions.
    """

    def __init__(
        self, *, in_channels: int, channels: int, norm: Norm = "BN", activation: Act = "leaky"
    ) -> None:
        super().__init__()
        half = channels // 2
        self.out_channels = 2 * channels
        self.conv1 = conv_norm_act(in_channels, channels, 3, norm=norm, activation=activation)
        self.conv2 = conv_norm_act(half, half, 3, norm=norm, activation=activation)
        self.conv3 = conv_norm_act(half, half, 3, norm=norm, activation=activation)
        self.join = conv_norm_act(channels, channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W) -> the output (N, 2 C, H, W) and its second half, the joined paths."""
        x = self.conv1(x)
        first = self.conv2(x.chunk(2, dim=1)[1])
        joined = self.join(torch.cat([self.conv3(first), first], dim=1))
        return torch.cat([x, joined], dim=1), joined


class TinyCSPDarknet(Backbone):
    """YOLOv4-tiny's trunk: two 3x3 convolutions of stride 2, three blocks, each pooled, a 3x3 one.

    Maps are ``c4`` (stride 16: the joined paths of the third block) and ``c5`` (stride 32).

    Args:
        in_channels: of the image.
        width: channels of the first convolution (32 as published); the maps have 8 and 16 times as
            many.
        norm, activation: of the convolutions.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: int = 32,
        norm: Norm = "BN",
        activation: Act = "leaky",
    ) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, stride: int) -> Conv2d:
            return conv_norm_act(c_in, c_out, 3, stride=stride, norm=norm, activation=activation)

        self.stem = nn.Sequential(conv(in_channels, width, 2), conv(width, 2 * width, 2))
        self.blocks = nn.ModuleList(
            TinyCSPBlock(
                in_channels=width * 2**i, channels=width * 2**i, norm=norm, activation=activation
            )
            for i in (1, 2, 3)
        )
        self.last = conv(16 * width, 16 * width, 1)
        self._shapes = {
            "c4": ShapeSpec(channels=8 * width, stride=16),
            "c5": ShapeSpec(channels=16 * width, stride=32),
        }

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> ``{"c4": (N, 8 width, H/16, W/16), "c5": (.., H/32, ..)}``."""
        x = self.stem(x)
        joined = x
        for block in self.blocks:
            x, joined = block(x)
            x = F.max_pool2d(x, 2)
        return {"c4": joined, "c5": self.last(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return dict(self._shapes)

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, then those of the heads."""
        yield from convolutions(self)
        for head in heads:
            yield from convolutions(head)
