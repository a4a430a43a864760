"""YOLOv4-tiny: two levels, YOLOv3's pyramid."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import TinyCSPDarknet
from d2proj.modeling.necks import YOLOFPN

from .yolov4 import model

model.backbone = L(YOLOFPN)(
    bottom_up=L(TinyCSPDarknet)(width=32, norm="${..norm}", activation="${..activation}"),
    in_features=["c4", "c5"],
    dims=[[], [256]],
    norm="BN",
    activation="leaky",
)
model.head.in_channels = [384, 256]
model.head.conv_dims = [256, 512]
model.head_in_features = ["p4", "p5"]
model.anchors = [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]]
model.decoders = model.decoders[:2]
model.level_losses = model.level_losses[:2]
# The finer level has anchors 1 to 3 as published: the smallest anchor is nobody's.
for decoder, loss, mask in zip(
    model.decoders, model.level_losses, ([1, 2, 3], [3, 4, 5]), strict=True
):
    decoder.mask = loss.mask = mask
    decoder.scale_x_y = 1.05
    loss.iou_thresh = 1.0
    loss.box_loss.max_delta = float("inf")
