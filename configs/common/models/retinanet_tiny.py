"""RetinaNet of a size that trains from scratch on a CPU."""

from detectron2.config import LazyCall as L

from d2proj.modeling.losses import GIoUBoxLoss

from .resnet import tiny_resnet
from .retinanet import model

tiny_resnet.out_features = ["res3", "res4", "res5"]
model.backbone.bottom_up = tiny_resnet
model.backbone.out_channels = 64
model.backbone.norm = "BN"
model.backbone.top_block = None  # P3 to P5: objects of up to the whole of a small image
model.head.num_levels = 3
model.head.conv_dims = [64, 64]
model.head.norm = "BN"
model.head_in_features = ["p3", "p4", "p5"]
model.anchor_generator.sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (16, 32, 64)]
model.anchor_generator.strides = [8, 16, 32]
model.box_loss = L(GIoUBoxLoss)()
model.pixel_std = [57.375, 57.12, 58.395]
