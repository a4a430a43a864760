"""YOLOv2: Darknet-19 and the passthrough. ``anchors`` stand here once: override them here."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import Darknet, darknet19_stages
from d2proj.modeling.dense_heads import YOLOHead
from d2proj.modeling.dense_heads.yolo import RegionDecoder
from d2proj.modeling.losses.region import RegionLoss
from d2proj.modeling.meta_arch import YOLO
from d2proj.modeling.necks import Passthrough
from d2proj.modeling.postprocess import PerClassNMS

model = L(YOLO)(
    backbone=L(Passthrough)(
        bottom_up=L(Darknet)(
            stages=L(darknet19_stages)(), out_features="${..in_features}", freeze_at=0
        ),
        in_features=["c4", "c5"],
        channels=1024,
        passthrough_channels=64,
    ),
    head=L(YOLOHead)(
        in_channels=[1280],
        conv_dims=[1024],
        num_anchors=5,
        num_classes="${..num_classes}",
        prior_prob=None,
    ),
    head_in_features=["p5"],
    anchors=[  # cells of the map (32 pixels each); COCO's
        [0.57273, 0.677385],
        [1.87446, 2.06253],
        [3.33843, 5.47434],
        [7.88282, 3.52778],
        [9.77052, 9.16828],
    ],
    decoders=[L(RegionDecoder)(anchors="${...anchors}", num_classes="${...num_classes}")],
    level_losses=[
        L(RegionLoss)(
            num_classes="${...num_classes}",
            object_scale=5.0,
            noobject_scale=1.0,
            class_scale=1.0,
            coord_scale=1.0,
            thresh=0.6,
            rescore=True,
        )
    ],
    postprocess=L(PerClassNMS)(
        score_thresh=0.005, nms_thresh=0.45, max_detections=100, topk_candidates=-1, clip=False
    ),
    num_classes=80,
    pixel_mean=[0.0, 0.0, 0.0],
    pixel_std=[255.0, 255.0, 255.0],
    input_format="RGB",
)
