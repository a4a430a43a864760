"""SSD of a size that trains from scratch on a CPU: a small ResNet, batch normalisation."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import ExtraLayer

from .resnet import tiny_resnet
from .ssd import model

tiny_resnet.out_features = ["res3", "res4", "res5"]
model.backbone.bottom_up = tiny_resnet
model.backbone.in_features = ["res3", "res4", "res5"]
model.backbone.adapters = [None, None, None]  # normalised maps are of one magnitude
model.backbone.extra_blocks = [
    L(ExtraLayer)(in_channels=192, mid_channels=64, out_channels=128, norm="BN"),
    L(ExtraLayer)(in_channels=128, mid_channels=64, out_channels=128, norm="BN"),
]
model.head.in_channels = [48, 96, 192, 128, 128]
model.head.num_anchors = [4, 6, 6, 4, 4]
model.head_in_features = ["res3", "res4", "res5", "extra1", "extra2"]
model.anchor_generator.sizes = [20, 40, 64, 104, 168, 256]  # for images of about 300 pixels
model.anchor_generator.aspect_ratios = [[2], [2, 3], [2, 3], [2], [2]]
model.anchor_generator.strides = [8, 16, 32, 64, 128]
model.pixel_mean = [103.53, 116.28, 123.675]
model.pixel_std = [57.375, 57.12, 58.395]
