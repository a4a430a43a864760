"""YOLOv4-tiny: COCO, the schedule of yolov4-tiny.cfg (416 pixels).

Start from ImageNet weights: train.init_checkpoint=yolov4-tiny.conv.29.
"""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov4_tiny import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.train_augmentations[1].shape = [416, 416]
data.batch_augmentations = []

optimizer.lr = 2.61e-3
schedule.milestones = [0.8, 0.9]
train.epochs = 1090  # 2 000 200 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
