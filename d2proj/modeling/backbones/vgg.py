"""VGG (Simonyan & Zisserman 2015) in the form that SSD gives it.

State-dict names are those of the paper: ``conv1_1`` to ``conv5_3``, ``fc6``, ``fc7``.
"""

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor
from torch.nn import functional as F

from d2proj.layers.conv import Conv2d
from d2proj.layers.init import init_msra
from d2proj.layers.norm import NormFactory, freeze, get_norm


class VGG(Backbone):
    """Stages of 3x3 convolutions with a pooling between them, then the classifier as convolutions.

    After Liu et al. 2016 ("SSD", section 3): the third pooling rounds up, the fifth is 3x3 of
    stride 1, ``fc6`` is a 3x3 convolution of dilation 6 and ``fc7`` a 1x1 convolution, both cut to
    ``fc_channels``; without ``fc8`` and dropout.

    Args:
        in_channels: of the image.
        channels: of each of the five stages.
        depths: convolutions of each stage; the default is VGG-16, (2, 2, 4, 4, 4) VGG-19.
        fc_channels: of ``fc6`` and ``fc7``.
        norm: of all convolutions (:func:`d2proj.layers.get_norm`); the published has none.
        out_features: names of the maps to return: the last convolution of a stage (``"conv4_3"``,
            after its ReLU, before the pooling) or ``"fc7"``.
        freeze_at: number of stages whose weights stay as they are.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        fc_channels: int = 1024,
        norm: str | NormFactory | None = "",
        out_features: Sequence[str] = ("conv4_3", "fc7"),
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or len(depths) != 5:
            raise ValueError(
                f"a VGG has five stages, got {len(channels)} channels and {len(depths)} depths"
            )
        shapes: dict[str, ShapeSpec] = {}
        self._stages: list[list[str]] = []
        for stage, (width, depth) in enumerate(zip(channels, depths, strict=True), start=1):
            names = [f"conv{stage}_{i}" for i in range(1, depth + 1)]
            for name in names:
                conv = _conv(in_channels, width, 3, 1, norm)
                if stage <= freeze_at:
                    freeze(conv)
                self.add_module(name, conv)
                in_channels = width
            self._stages.append(names)
            shapes[names[-1]] = ShapeSpec(channels=width, stride=2 ** (stage - 1))
        self.fc6 = _conv(in_channels, fc_channels, 3, 6, norm)
        self.fc7 = _conv(fc_channels, fc_channels, 1, 1, norm)
        shapes["fc7"] = ShapeSpec(channels=fc_channels, stride=16)
        unknown = set(out_features) - set(shapes)
        if unknown or not out_features:
            raise ValueError(f"out_features must name some of {list(shapes)}, got {out_features}")
        self._shapes = {name: shapes[name] for name in out_features}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> ``{name: map}`` for the names in ``out_features``."""
        maps: dict[str, Tensor] = {}
        for stage, names in enumerate(self._stages, start=1):
            for name in names:
                x = getattr(self, name)(x)
            maps[names[-1]] = x
            if stage < 5:
                # 300 pixels: 150, 75, 38, 19. In the paper's Caffe every pooling rounds up.
                x = F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=stage == 3)
        x = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        maps["fc7"] = self.fc7(self.fc6(x))
        return {name: maps[name] for name in self._shapes}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map that :meth:`forward` returns."""
        return dict(self._shapes)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    dilation: int,
    norm: str | NormFactory | None,
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu_,
    )
    init_msra(conv)
    return conv
