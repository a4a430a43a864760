"""SSD512 on VGG-16, for COCO: one more map than SSD300, all of its strides doubling."""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import ExtraLayer

from .ssd import model

model.backbone.extra_blocks = [  # 64 and 32, then 16, 8, 4, 2, 1 cells a side
    L(ExtraLayer)(in_channels=1024, mid_channels=256, out_channels=512),
    L(ExtraLayer)(in_channels=512, mid_channels=128, out_channels=256),
    L(ExtraLayer)(in_channels=256, mid_channels=128, out_channels=256),
    L(ExtraLayer)(in_channels=256, mid_channels=128, out_channels=256),
    L(ExtraLayer)(in_channels=256, mid_channels=128, out_channels=256, kernel_size=4),
]
model.head.in_channels = [512, 1024, 512, 256, 256, 256, 256]
model.head.num_anchors = [4, 6, 6, 6, 6, 4, 4]
model.head_in_features = ["conv4_3", "fc7", "extra1", "extra2", "extra3", "extra4", "extra5"]
# 0.04 of the side, then 0.1 to 0.9 in equal steps, and one more.
model.anchor_generator.sizes = [20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72]
model.anchor_generator.aspect_ratios = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
model.anchor_generator.strides = [8, 16, 32, 64, 128, 256, 512]
