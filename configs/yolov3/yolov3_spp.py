"""YOLOv3-SPP, COCO, darknet's schedule (yolov3-spp.cfg; 608 pixels).

Start from ImageNet weights: train.init_checkpoint=darknet53.conv.74."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov3_spp import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.val_augmentations[0].shape = [608, 608]

train.epochs = 273  # 500 200 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
