"""YOLOv4-SAM-Mish-CSP-reorg-BFM: another neck, Mish everywhere."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import TappedCSPDarknet, csp_darknet53_stages
from d2proj.modeling.necks import BFMPAN, CSPTop

from .yolov4 import model

model.backbone = L(BFMPAN)(
    bottom_up=L(TappedCSPDarknet)(stages=L(csp_darknet53_stages)(norm="BN", activation="mish")),
    top_block=L(CSPTop)(
        in_channels=1024, channels=512, norm="${..norm}", activation="${..activation}"
    ),
    norm="BN",
    activation="mish",
)
model.head.in_channels = [128, 256, 512]
