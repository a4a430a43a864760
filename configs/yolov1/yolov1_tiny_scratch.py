"""Small YOLOv1, from scratch on a CPU, on a small data set (``dataset.format=...``)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.modeling.dense_heads import YOLOv1ConvHead

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.yolov1 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as schedule
from ..common.train import train

model.num_classes = None  # as many as the data has
model.backbone.norm = "BN"
# 224 pixels to 7 x 7 cells.
model.backbone.stages = [
    [[16, 3, 1]],
    [[32, 3, 1]],
    [[64, 3, 1]],
    [[128, 3, 1]],
    [[256, 3, 1], [128, 1, 1], [256, 3, 1]],
    [[512, 3, 1], [256, 1, 1], [512, 3, 1]],
]
model.head = L(YOLOv1ConvHead)(
    in_channels=512,
    side=7,
    boxes_per_cell=2,
    num_classes="${..num_classes}",
    conv_dims=256,
)

data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.batch_size = train.lr_batch_size = 16
data.workers = 2
data.train_augmentations = [
    L(T.RandomExtent)(scale_range=[0.8, 1.2], shift_range=[0.4, 0.4]),
    L(T.Resize)(shape=[224, 224]),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(T.Resize)(shape=[224, 224])]

optimizer.lr = 1e-3
schedule.warmup_iters = 100
train.epochs = 60
train.clip_grad.max_norm = 10.0
