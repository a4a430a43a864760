"""Faster R-CNN with FPN."""

from detectron2.config import LazyCall as L

from d2proj.modeling.box_coding import Box2BoxTransform
from d2proj.modeling.losses import SmoothL1BoxLoss
from d2proj.modeling.matching import Matcher
from d2proj.modeling.meta_arch import FasterRCNN
from d2proj.modeling.necks import FPN, LastLevelMaxPool
from d2proj.modeling.postprocess import PerClassNMS
from d2proj.modeling.priors import AnchorGenerator
from d2proj.modeling.proposals import RPN, RPNHead
from d2proj.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    RoIHeads,
    RoIPooler,
)

from .resnet import resnet

model = L(FasterRCNN)(
    backbone=L(FPN)(
        bottom_up=resnet,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelMaxPool)(in_feature="p5"),
    ),
    proposal_generator=L(RPN)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=L(RPNHead)(in_channels="${...backbone.out_channels}", num_anchors=3),
        anchor_generator=L(AnchorGenerator)(
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=[4, 8, 16, 32, 64],
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        box_loss=L(SmoothL1BoxLoss)(beta=0.0),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=[2000, 1000],  # of each level: training, inference
        post_nms_topk=[1000, 1000],
        nms_thresh=0.7,
    ),
    roi_heads=L(RoIHeads)(
        in_features=["p2", "p3", "p4", "p5"],
        num_classes="${..num_classes}",
        box_pooler=L(RoIPooler)(
            output_size=7, scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=0, aligned=True
        ),
        box_head=L(FastRCNNConvFCHead)(
            in_channels="${...backbone.out_channels}",
            pooler_size="${..box_pooler.output_size}",
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            in_features="${..box_head.fc_dims[1]}",
            num_classes="${..num_classes}",
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            box_loss=L(SmoothL1BoxLoss)(beta=0.0),
            postprocess=L(PerClassNMS)(score_thresh=0.05, nms_thresh=0.5, max_detections=100),
        ),
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1]),
        batch_size_per_image=512,
        positive_fraction=0.25,
    ),
    num_classes=80,
    pixel_mean=[103.53, 116.28, 123.675],  # BGR
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
