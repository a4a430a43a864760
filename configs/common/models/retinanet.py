"""RetinaNet."""

from detectron2.config import LazyCall as L

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.dense_heads import RetinaNetHead
from d2proj.modeling.losses import FocalLoss, SmoothL1BoxLoss
from d2proj.modeling.matching import Matcher
from d2proj.modeling.meta_arch import RetinaNet
from d2proj.modeling.necks import FPN, LastLevelP6P7
from d2proj.modeling.postprocess import PerClassNMS
from d2proj.modeling.priors import AnchorGenerator

from .resnet import resnet

model = L(RetinaNet)(
    backbone=L(FPN)(
        bottom_up=resnet,
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelP6P7)(in_channels=2048, out_channels="${..out_channels}"),
    ),
    head=L(RetinaNetHead)(
        in_channels="${..backbone.out_channels}",
        num_classes="${..num_classes}",
        num_anchors=9,
        conv_dims=[256, 256, 256, 256],
        prior_prob=0.01,
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    anchor_generator=L(AnchorGenerator)(
        # Each size, times 2^(1/3), times 2^(2/3) (section 4).
        sizes=[[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=[8, 16, 32, 64, 128],
    ),
    anchor_matcher=L(Matcher)(
        thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0),
    box_loss=L(SmoothL1BoxLoss)(beta=0.0),
    postprocess=L(PerClassNMS)(
        score_thresh=0.05, nms_thresh=0.5, max_detections=100, topk_candidates=1000, clip=False
    ),
    num_classes=80,
    pixel_mean=[103.53, 116.28, 123.675],  # BGR
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
