"""YOLOv2, COCO, darknet's schedule (yolov2.cfg).

Start from ImageNet weights: train.init_checkpoint=darknet19_448.conv.23."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov2 import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

train.epochs = 273  # 500 200 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
