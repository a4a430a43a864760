"""YOLOv4-tiny from scratch on a CPU, on a small data set (``dataset.format=...``)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.yolov4_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as schedule
from ..common.train import train

model.num_classes = None  # as many as the data has
model.head.prior_prob = 0.01
model.decoders[0].mask = model.level_losses[0].mask = [0, 1, 2]  # no anchor is nobody's

data.batch_size = train.lr_batch_size = 8
data.workers = 2
data.image_format = "RGB"
data.train_augmentations = [
    L(T.ResizeShortestEdge)(
        short_edge_length=[224, 256, 288, 320], max_size=480, sample_style="choice"
    ),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(T.ResizeShortestEdge)(short_edge_length=288, max_size=480)]

optimizer.lr = 1e-3
schedule.warmup_iters = 100
train.epochs = 24
train.clip_grad.max_norm = 35.0
