"""YOLOv3-tiny with deviations: two levels, coordinates learn by the likelihood alone."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import darknet_tiny_stages

from .gaussian_yolov3 import model

model.backbone.bottom_up.stages = L(darknet_tiny_stages)()
model.backbone.in_features = ["c4", "c5"]
model.backbone.dims = [[], [256]]
model.head.in_channels = [384, 256]
model.head.conv_dims = [256, 512]
model.head_in_features = ["p4", "p5"]
model.anchors = [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]]
model.decoders = model.decoders[:2]
model.level_losses = model.level_losses[:2]
for loss in model.level_losses:
    loss.box_loss = None  # the paper's
    loss.iou_normalizer = 1.0
    loss.iou_thresh = 1.0  # the best anchor alone
model.num_classes = 80
