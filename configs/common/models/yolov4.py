"""YOLOv4 as released (yolov4.cfg). ``anchors`` stand here once: override them in one place."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import Darknet, csp_darknet53_stages
from d2proj.modeling.dense_heads import YOLOHead
from d2proj.modeling.dense_heads.yolo import YOLODecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.yolo import YOLOLoss
from d2proj.modeling.meta_arch import YOLO
from d2proj.modeling.necks import YOLOPAN, YOLOv4Top
from d2proj.modeling.postprocess import PerClassDIoUNMS

model = L(YOLO)(
    backbone=L(YOLOPAN)(
        bottom_up=L(Darknet)(
            stages=L(csp_darknet53_stages)(
                width=32, blocks=[1, 2, 8, 8, 4], norm="BN", activation="mish"
            ),
            out_features="${..in_features}",
            freeze_at=0,
        ),
        in_features=["c3", "c4", "c5"],
        channels=[128, 256, 512],
        top_block=L(YOLOv4Top)(
            in_channels=1024,
            channels="${..channels[2]}",
            norm="${..norm}",
            activation="${..activation}",
        ),
        refine=None,
        norm="BN",
        activation="leaky",
    ),
    head=L(YOLOHead)(
        in_channels="${..backbone.channels}",
        conv_dims=[256, 512, 1024],
        num_anchors=3,
        num_classes="${..num_classes}",
        prior_prob=None,
        norm="${..backbone.norm}",
        activation="${..backbone.activation}",
        predictor_activation=None,
    ),
    head_in_features=["p3", "p4", "p5"],
    anchors=[  # pixels of the network's input, all levels', small to large
        [12, 16],
        [19, 36],
        [40, 28],
        [36, 75],
        [76, 55],
        [72, 146],
        [142, 110],
        [192, 243],
        [459, 401],
    ],
    decoders=[
        L(YOLODecoder)(
            anchors="${...anchors}",
            mask=mask,
            num_classes="${...num_classes}",
            scale_x_y=scale,
            new_coords=False,
        )
        for mask, scale in (([0, 1, 2], 1.2), ([3, 4, 5], 1.1), ([6, 7, 8], 1.05))
    ],
    level_losses=[
        L(YOLOLoss)(
            anchors="${...anchors}",
            mask=mask,
            num_classes="${...num_classes}",
            box_loss=L(DarknetIoULoss)(kind="ciou", max_delta=5.0),
            ignore_thresh=0.7,
            iou_thresh=0.213,
            iou_normalizer=0.07,
            obj_normalizer=1.0,
            label_smooth_eps=0.0,
            objectness_smooth=False,
        )
        for mask in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
    ],
    # darknet's greedynms is DIoU-NMS with this beta.
    postprocess=L(PerClassDIoUNMS)(
        beta=0.6,
        score_thresh=0.005,
        nms_thresh=0.45,
        max_detections=100,
        topk_candidates=-1,
        clip=False,
    ),
    num_classes=80,
    pixel_mean=[0.0, 0.0, 0.0],
    pixel_std=[255.0, 255.0, 255.0],
    input_format="RGB",
)
