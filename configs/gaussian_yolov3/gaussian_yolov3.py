"""Gaussian YOLOv3, BDD100K, darknet's schedule (Gaussian_yolov3_BDD.cfg; 512 pixels).

Start from ImageNet weights: train.init_checkpoint=darknet53.conv.74."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.gaussian_yolov3 import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.train_augmentations[1].shape = [704, 704]
data.batch_augmentations[0].min_size = 352
data.batch_augmentations[0].max_size = 704
data.val_augmentations[0].shape = [512, 512]

optimizer.lr = 1e-4
train.epochs = 457  # 500 200 batches of 64 of 70 000 pictures
train.lr_batch_size = 64
