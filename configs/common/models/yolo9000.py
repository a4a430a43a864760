"""YOLO9000: Darknet-19, three anchors, a class tree. ``anchors`` and ``tree`` stand here once."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import Darknet, darknet19_stages
from d2proj.modeling.dense_heads import YOLOHead
from d2proj.modeling.dense_heads.yolo9000 import TreeDecoder
from d2proj.modeling.losses.yolo9000 import TreeRegionLoss
from d2proj.modeling.meta_arch import YOLO9000
from d2proj.modeling.postprocess import PerClassNMS
from d2proj.modeling.word_tree import load_tree, number_of_nodes

model = L(YOLO9000)(
    backbone=L(Darknet)(stages=L(darknet19_stages)(), out_features=["c5"]),
    head=L(YOLOHead)(
        in_channels=[1024],
        conv_dims=[0],
        num_anchors=3,
        num_classes=L(number_of_nodes)(tree="${...tree}"),
        prior_prob=None,
    ),
    head_in_features=["c5"],
    # path: darknet's .tree file; null: the data's classes, none a kind of another.
    # class_map: its .map file, a node for each class of the data; null: the classes are the nodes.
    tree=L(load_tree)(path=None, class_map=None, num_classes="${..num_classes}"),
    anchors=[  # cells of the map (32 pixels each)
        [0.77871, 1.14074],
        [3.00525, 4.31277],
        [9.22725, 9.61974],
    ],
    decoders=[L(TreeDecoder)(anchors="${...anchors}", tree="${...tree}", hier_thresh=0.5)],
    level_losses=[
        L(TreeRegionLoss)(
            tree="${...tree}",
            object_scale=5.0,
            noobject_scale=1.0,
            class_scale=1.0,
            coord_scale=1.0,
            thresh=0.6,
            rescore=True,
            warmup_images=12_800,
            assumed_iou=0.3,
        )
    ],
    postprocess=L(PerClassNMS)(
        score_thresh=0.005, nms_thresh=0.45, max_detections=100, topk_candidates=-1, clip=False
    ),
    num_classes=9418,
    pixel_mean=[0.0, 0.0, 0.0],
    pixel_std=[255.0, 255.0, 255.0],
    input_format="RGB",
)
