"""Tiny SSD, from scratch on a CPU, on a small data set (``dataset.format=...``)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.augmentations import ssd_augmentations
from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.ssd_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine as schedule
from ..common.train import train

model.num_classes = None  # as many as the data has

data.batch_size = train.lr_batch_size = 8
data.workers = 2
data.train_augmentations = [*ssd_augmentations, L(T.Resize)(shape=[288, 288])]
data.train_augmentations[1].max_ratio = 2.0  # small maps see little of what is a quarter in size
data.val_augmentations = [L(T.Resize)(shape=[288, 288])]

optimizer.lr = 1e-3
schedule.warmup_iters = 100
train.epochs = 60
train.clip_grad.max_norm = 5.0
