"""A small data set from scratch, on a CPU: what the ``tiny`` configs train with."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .data import data, dataset
from .optim import AdamW as optimizer
from .schedule import cosine as schedule
from .train import train

data.batch_size = train.lr_batch_size = 8
data.workers = 2
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
