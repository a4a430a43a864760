"""Darknet-19, Darknet-53 and the trunk of the tiny YOLO networks.

Sources: Redmon & Farhadi, "YOLO9000: better, faster, stronger", 2017, table 6; "YOLOv3: an
incremental improvement", 2018, table 1; darknet's yolov2-tiny.cfg and yolov3-tiny.cfg. Every
network is a list of stages, ``c0`` to ``c5``: the map of ``c<k>`` has stride 2^k.
"""

from collections.abc import Iterable, Iterator, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.norm import NormFactory, freeze

Norm = str | NormFactory | None


def convolutions(module: nn.Module) -> Iterator[Conv2d]:
    """The convolutions inside a module, in the order in which they were made."""
    return (m for m in module.modules() if isinstance(m, Conv2d))


class DarknetResidual(nn.Module):
    """A 1x1 and a 3x3 convolution and the identity (YOLOv3, table 1).

    Args:
        channels: in and out.
        hidden_channels: between the convolutions.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise; nothing follows the sum.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        *,
        norm: Norm = "BN",
        activation: str | Activation | None = "leaky",
    ) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(channels, hidden_channels, 1, norm=norm, activation=activation)
        self.conv2 = conv_norm_act(hidden_channels, channels, 3, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + self.conv2(self.conv1(x))


class SameMaxPool2d(nn.Module):
    """2x2 max-pooling of stride 1 that keeps the map's size.

    A window reaches one cell to the right and below, as in darknet: padding at the end only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 2, 1)


def _halve() -> nn.MaxPool2d:
    # darknet rounds an odd side up.
    return nn.MaxPool2d(2, 2, ceil_mode=True)


def darknet19_stages(
    *,
    in_channels: int = 3,
    norm: Norm = "BN",
    activation: str | Activation | None = "leaky",
) -> list[nn.Sequential]:
    """The stages of Darknet-19 without its classifier: 18 convolutions, five poolings.

    3x3 convolutions, from the third stage on with 1x1 ones of half their channels between them.

    Args:
        in_channels: of the image.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """
    stages: list[nn.Sequential] = []
    plan = ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
    for i, (channels, count) in enumerate(plan):
        layers: list[nn.Module] = [_halve()] if i else []
        for k in range(count):
            out, size = (channels // 2, 1) if k % 2 else (channels, 3)
            layers.append(conv_norm_act(in_channels, out, size, norm=norm, activation=activation))
            in_channels = out
        stages.append(nn.Sequential(*layers))
    return stages


def darknet53_stages(
    *,
    in_channels: int = 3,
    width: int = 32,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    norm: Norm = "BN",
    activation: str | Activation | None = "leaky",
) -> list[nn.Sequential]:
    """The stages of Darknet-53 without its classifier: 52 convolutions.

    Args:
        in_channels: of the image.
        width: channels of ``c0``; doubled at each later stage.
        blocks: residual blocks of ``c1``, ``c2``, ...
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """
    stem = conv_norm_act(in_channels, width, 3, norm=norm, activation=activation)
    stages = [nn.Sequential(stem)]
    for count in blocks:
        down = conv_norm_act(width, 2 * width, 3, stride=2, norm=norm, activation=activation)
        residuals = [
            DarknetResidual(2 * width, width, norm=norm, activation=activation)
            for _ in range(count)
        ]
        stages.append(nn.Sequential(down, *residuals))
        width *= 2
    return stages


def darknet_tiny_stages(
    *,
    in_channels: int = 3,
    width: int = 16,
    norm: Norm = "BN",
    activation: str | Activation | None = "leaky",
) -> list[nn.Sequential]:
    """The stages of YOLOv2-tiny and YOLOv3-tiny: seven 3x3 convolutions with a pooling between.

    The last pooling has stride 1.

    Args:
        in_channels: of the image.
        width: channels of ``c0``; doubled at each convolution.
        norm: see :func:`d2proj.layers.conv_norm_act`.
        activation: likewise.
    """
    stages: list[nn.Sequential] = []
    for i in range(6):
        conv = conv_norm_act(in_channels, width * 2**i, 3, norm=norm, activation=activation)
        stages.append(nn.Sequential(_halve(), conv) if i else nn.Sequential(conv))
        in_channels = width * 2**i
    last = conv_norm_act(in_channels, 2 * in_channels, 3, norm=norm, activation=activation)
    stages[-1].append(SameMaxPool2d())
    stages[-1].append(last)
    return stages


class Darknet(Backbone):
    """Stages ``c0``, ``c1``, ..., each of half the resolution of the one before.

    Args:
        stages: modules whose last convolution has the channels of their map
            (:func:`darknet53_stages` and the like).
        out_features: names of the maps to return; stages after the last of them are left out.
        freeze_at: so many of the first stages are not trained.
    """

    def __init__(
        self,
        *,
        stages: Sequence[nn.Module],
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        names = [f"c{k}" for k in range(len(stages))]
        unknown = set(out_features) - set(names)
        if unknown or not out_features:
            raise ValueError(f"out_features must name some of {names}, got {list(out_features)}")
        self._out_features = list(out_features)
        self.stage_names = names[: max(map(names.index, out_features)) + 1]
        shapes = {}
        for k, (name, stage) in enumerate(zip(self.stage_names, stages, strict=False)):
            self.add_module(name, freeze(stage) if k < freeze_at else stage)
            *_, last = convolutions(stage)
            shapes[name] = ShapeSpec(channels=last.out_channels, stride=2**k)
        self._shapes = {name: shapes[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Sides of the image must be multiples of this for every cell to be of the same size."""
        return 2 ** (len(self.stage_names) - 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{name: map}`` for the names in ``out_features``."""
        maps = {}
        for name in self.stage_names:
            x = getattr(self, name)(x)
            maps[name] = x
        return {name: maps[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map that :meth:`forward` returns."""
        return dict(self._shapes)

    def darknet_layers(self, heads: Iterable[nn.Module] = ()) -> Iterator[nn.Module]:
        """The convolutions in the order of darknet's weights files, then those of the heads."""
        yield from convolutions(self)
        for head in heads:
            yield from convolutions(head)


class DarknetClassifier(nn.Module):
    """darknet's image classifiers (darknet19.cfg, darknet53.cfg): mean over the map, linear layer.

    Darknet-19 has them the other way round, which is the same.

    Args:
        backbone: only its last stage is used.
        num_classes: of ImageNet 1000.
    """

    def __init__(self, *, backbone: Darknet, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = backbone
        (shape,) = backbone.output_shape().values()
        # A convolution, so that it is stored as darknet stores it.
        self.predictor = Conv2d(shape.channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, num_classes)."""
        (last,) = self.backbone(x).values()
        logits: Tensor = self.predictor(last.mean((2, 3), keepdim=True)).flatten(1)
        return logits

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The layers with weights in the order of darknet's weights files."""
        yield from self.backbone.darknet_layers([self.predictor])
