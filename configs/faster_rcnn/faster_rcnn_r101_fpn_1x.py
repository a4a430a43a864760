"""Faster R-CNN, ResNet-101 with FPN, COCO, the 1x schedule.

Start from MSRA's ImageNet weights: train.init_checkpoint=R-101.pkl.
"""

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.faster_rcnn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

model.backbone.bottom_up.stages.depth = 101

optimizer.lr = 0.02  # for 16 images an iteration
train.epochs = 12.28  # 90 000 iterations of 16 images
train.lr_batch_size = data.batch_size = 16
