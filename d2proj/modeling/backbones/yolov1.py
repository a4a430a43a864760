"""The convolutions of YOLOv1 (Redmon et al. 2016, "You Only Look Once", section 2.1, figure 3)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers import Conv2d, conv_norm_act
from d2proj.layers.activation import Activation
from d2proj.layers.init import init_msra
from d2proj.layers.norm import NormFactory

Stages = Sequence[Sequence[Sequence[int]]]

#: Figure 3: 24 convolutions (channels, kernel, stride), max-pooling between the stages.
YOLOV1_STAGES: Stages = (
    ((64, 7, 2),),
    ((192, 3, 1),),
    ((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)),
    (*((256, 1, 1), (512, 3, 1)) * 4, (512, 1, 1), (1024, 3, 1)),
    (*((512, 1, 1), (1024, 3, 1)) * 2, (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)),
)
#: Fast YOLO's nine; the paper gives their number alone, channels follow darknet's tiny-yolo.cfg.
FAST_YOLO_STAGES: Stages = (
    *(((channels, 3, 1),) for channels in (16, 32, 64, 128, 256, 512)),
    ((1024, 3, 1),) * 3,
)


class YOLOv1Backbone(Backbone):
    """Stages of convolutions with 2x2 max-pooling between them.

    Args:
        stages: of each stage the convolutions' channels, kernel size and stride.
        in_channels: of the image.
        norm: see :func:`d2proj.layers.get_norm`. The paper has none, the cfg files released later
            have batch normalisation.
        activation: see :func:`d2proj.layers.get_activation`.
        out_feature: name of the map.
    """

    def __init__(
        self,
        *,
        stages: Stages = YOLOV1_STAGES,
        in_channels: int = 3,
        norm: str | NormFactory | None = "",
        activation: str | Activation | None = "leaky",
        out_feature: str = "grid",
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        stride = 2 ** (len(stages) - 1)
        for specs in stages:
            stage = nn.Sequential()
            for channels, kernel, step in specs:
                conv = conv_norm_act(
                    in_channels, channels, kernel, stride=step, norm=norm, activation=activation
                )
                init_msra(conv)
                stage.append(conv)
                in_channels, stride = channels, stride * step
            self.stages.append(stage)
        self._out_features = [out_feature]
        self._shape = ShapeSpec(channels=in_channels, stride=stride)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the last stage's map, (N, C', H / stride, W / stride), rounded up."""
        for i, stage in enumerate(self.stages):
            # As darknet, which lets a window at the border reach beyond the map.
            x = stage(x if i == 0 else F.max_pool2d(x, 2, ceil_mode=True))
        return {self._out_features[0]: x}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The map's name, channels and stride."""
        return {self._out_features[0]: self._shape}

    def darknet_layers(self, heads: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """Layers with weights in the order of a weights file: its own, then the head's."""
        for stage in self.stages:
            yield from cast("Iterable[Conv2d]", stage)
        for head in heads:
            yield from (x for x in head.children() if next(x.parameters(), None) is not None)
