"""Small YOLO9000, from scratch on a CPU; with a class tree of one's own: model.tree.path=..."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import darknet_tiny_stages

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.yolo9000 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as schedule
from ..common.train import train

model.num_classes = None  # as many as the data has
model.backbone.stages = L(darknet_tiny_stages)(width=8)
model.head.in_channels = [512]
model.head.conv_dims = [256]
model.head.prior_prob = 0.01
model.level_losses[0].warmup_images = 0  # published: 12 800, more than such a run sees

data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.batch_size = train.lr_batch_size = 16
data.workers = 2
data.train_augmentations = [
    L(T.RandomExtent)(scale_range=[0.8, 1.2], shift_range=[0.4, 0.4]),
    L(T.Resize)(shape=[320, 320]),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(T.Resize)(shape=[320, 320])]

optimizer.lr = 1e-3
schedule.warmup_iters = 100
train.epochs = 60
train.clip_grad.max_norm = 10.0
