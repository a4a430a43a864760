"""SSD300 on VGG-16, for COCO (Liu et al. 2016; the sizes of the authors' ssd_coco.py)."""

from detectron2.config import LazyCall as L

from d2proj.layers import L2Norm
from d2proj.modeling.backbones import VGG
from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.dense_heads import SSDHead
from d2proj.modeling.losses import HardNegativeSoftmaxLoss, SmoothL1BoxLoss
from d2proj.modeling.matching import BipartiteMatcher
from d2proj.modeling.meta_arch import SSD
from d2proj.modeling.necks import ExtraLayer, SSDNeck
from d2proj.modeling.postprocess import PerClassNMS
from d2proj.modeling.priors import DefaultBoxGenerator

model = L(SSD)(
    backbone=L(SSDNeck)(
        bottom_up=L(VGG)(out_features=["conv4_3", "fc7"], norm="", freeze_at=0),
        in_features=["conv4_3", "fc7"],
        adapters=[L(L2Norm)(num_channels=512, scale=20.0), None],
        extra_blocks=[  # 38 and 19, then 10, 5, 3, 1 cells a side
            L(ExtraLayer)(in_channels=1024, mid_channels=256, out_channels=512),
            L(ExtraLayer)(in_channels=512, mid_channels=128, out_channels=256),
            L(ExtraLayer)(in_channels=256, mid_channels=128, out_channels=256, stride=1, padding=0),
            L(ExtraLayer)(in_channels=256, mid_channels=128, out_channels=256, stride=1, padding=0),
        ],
    ),
    head=L(SSDHead)(
        in_channels=[512, 1024, 512, 256, 256, 256],
        num_anchors=[4, 6, 6, 6, 4, 4],
        num_classes="${..num_classes}",
    ),
    head_in_features=["conv4_3", "fc7", "extra1", "extra2", "extra3", "extra4"],
    anchor_generator=L(DefaultBoxGenerator)(
        # 0.07 of the side, then 0.15 to 0.87 in equal steps, and one more.
        sizes=[21, 45, 99, 153, 207, 261, 315],
        aspect_ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        strides=[8, 16, 32, 64, 100, 300],
    ),
    anchor_matcher=L(BipartiteMatcher)(threshold=0.5),
    box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
    cls_loss=L(HardNegativeSoftmaxLoss)(negative_ratio=3.0),
    box_loss=L(SmoothL1BoxLoss)(beta=1.0),
    postprocess=L(PerClassNMS)(
        score_thresh=0.01, nms_thresh=0.45, max_detections=200, topk_candidates=400
    ),
    num_classes=80,
    pixel_mean=[104.0, 117.0, 123.0],  # BGR
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
