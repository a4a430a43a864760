"""YOLOv4 with everything that the paper lists (section 3.4), COCO, 512 pixels.

Mosaic, CutMix and self-adversarial training are augmentations and not in this file.
Start from a checkpoint of yolov4.py: names are the same, and what is this file's own starts anew.
"""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov4_paper import model
from ..common.optim import darknet as optimizer
from ..common.schedule import cosine as schedule
from ..common.train import train

data.val_augmentations[0].shape = [512, 512]

optimizer.lr = 2.61e-3
optimizer.momentum = 0.949
schedule.final_factor = 0.0
schedule.warmup_iters = 1000
schedule.warmup_factor = 0.0
schedule.warmup_power = 4.0
train.epochs = 273  # 500 500 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
