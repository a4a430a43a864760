"""YOLOv4 with SAM, Mish, CSP, reorg and BFM (yolov4-sam-mish-csp-reorg-bfm.cfg; 512 pixels)."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov4_sam import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.train_augmentations[0].jitter = 0.2
data.train_augmentations[1].shape = [512, 512]
data.batch_augmentations = []
data.val_augmentations[0].shape = [512, 512]

optimizer.momentum = 0.949
train.epochs = 273  # 500 500 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
