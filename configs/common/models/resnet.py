"""ResNet backbones."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import BasicStem, ConvStem, ResNet, resnet_stages

# As published with Detectron2: MSRA weights, stride in the first 1x1, batch normalisation frozen.
resnet = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
    stages=L(resnet_stages)(depth=50, norm="FrozenBN", stride_in_1x1=True),
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)

# For training from scratch on a CPU: ResNet-18's layout at a third of its width, a stem of two 3x3
# convolutions, trainable batch normalisation.
tiny_resnet = L(ResNet)(
    stem=L(ConvStem)(in_channels=3, mid_channels=12, out_channels=24, norm="BN"),
    stages=L(resnet_stages)(depth=18, in_channels=24, width=24, norm="BN"),
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=0,
)
