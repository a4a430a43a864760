"""YOLOv1, Pascal VOC 2007 + 2012, as in the paper (section 2.2).

The paper starts the first 20 convolutions from a classifier that it trained on ImageNet.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.yolov1 import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

data.image_format = "RGB"
data.aspect_ratio_grouping = False
# Scaling and shifts of up to a fifth of the image; exposure and saturation by up to 1.5.
data.train_augmentations = [
    L(T.RandomExtent)(scale_range=[0.8, 1.2], shift_range=[0.4, 0.4]),
    L(T.Resize)(shape=[448, 448]),
    L(T.RandomBrightness)(intensity_min=0.6667, intensity_max=1.5),
    L(T.RandomSaturation)(intensity_min=0.6667, intensity_max=1.5),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(T.Resize)(shape=[448, 448])]
data.batch_size = train.lr_batch_size = 64

optimizer.lr = 0.01
optimizer.weight_decay = 5e-4
train.epochs = 135  # 75 with 0.01, 30 with 0.001, 30 with 0.0001
schedule.milestones = [75 / 135, 105 / 135]
schedule.warmup_iters = 500  # "the first epochs" rise from 0.001
schedule.warmup_factor = 0.1
