"""Faster R-CNN of a size that trains from scratch on a CPU."""

from detectron2.config import LazyCall as L

from d2proj.modeling.losses import GIoUBoxLoss

from .faster_rcnn import model
from .resnet import tiny_resnet

model.backbone.bottom_up = tiny_resnet
model.backbone.out_channels = 64
model.backbone.norm = "BN"
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.pre_nms_topk = [400, 300]
model.proposal_generator.post_nms_topk = [300, 200]
model.roi_heads.batch_size_per_image = 128
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_predictor.box_loss = L(GIoUBoxLoss)()
model.pixel_std = [57.375, 57.12, 58.395]
