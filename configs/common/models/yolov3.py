"""YOLOv3: Darknet-53, three levels. ``anchors`` stand here once: override them in one place."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import Darknet, darknet53_stages
from d2proj.modeling.dense_heads import YOLOHead
from d2proj.modeling.dense_heads.yolo import YOLODecoder
from d2proj.modeling.losses.yolo import YOLOLoss
from d2proj.modeling.meta_arch import YOLO
from d2proj.modeling.necks import YOLOFPN
from d2proj.modeling.postprocess import PerClassNMS

model = L(YOLO)(
    backbone=L(YOLOFPN)(
        bottom_up=L(Darknet)(
            stages=L(darknet53_stages)(), out_features="${..in_features}", freeze_at=0
        ),
        in_features=["c3", "c4", "c5"],
        dims=[
            [128, 256, 128, 256, 128],
            [256, 512, 256, 512, 256],
            [512, 1024, 512, 1024, 512],
        ],
        top_block=None,
    ),
    head=L(YOLOHead)(
        in_channels=[128, 256, 512],
        conv_dims=[256, 512, 1024],
        num_anchors=3,
        num_classes="${..num_classes}",
        prior_prob=None,
    ),
    head_in_features=["p3", "p4", "p5"],
    anchors=[  # pixels of the network's input, all levels', small to large
        [10, 13],
        [16, 30],
        [33, 23],
        [30, 61],
        [62, 45],
        [59, 119],
        [116, 90],
        [156, 198],
        [373, 326],
    ],
    decoders=[
        L(YOLODecoder)(anchors="${...anchors}", mask=mask, num_classes="${...num_classes}")
        for mask in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
    ],
    level_losses=[
        L(YOLOLoss)(
            anchors="${...anchors}",
            mask=mask,
            num_classes="${...num_classes}",
            box_loss=None,  # squared errors
            ignore_thresh=0.7,
        )
        for mask in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
    ],
    postprocess=L(PerClassNMS)(
        score_thresh=0.005, nms_thresh=0.45, max_detections=100, topk_candidates=-1, clip=False
    ),
    num_classes=80,
    pixel_mean=[0.0, 0.0, 0.0],
    pixel_std=[255.0, 255.0, 255.0],
    input_format="RGB",
)
