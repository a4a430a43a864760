"""YOLOv4 as released: COCO, the schedule of yolov4.cfg (608 pixels).

Start from ImageNet weights: train.init_checkpoint=yolov4.conv.137.
"""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov4 import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.train_augmentations[1].shape = [896, 896]
data.batch_augmentations[0].min_size = 480  # 608 / 1.4 to 608 * 1.4, and up (random=1)
data.batch_augmentations[0].max_size = 896
data.val_augmentations[0].shape = [608, 608]

optimizer.lr = 1.3e-3
optimizer.momentum = 0.949
train.epochs = 273  # 500 500 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
