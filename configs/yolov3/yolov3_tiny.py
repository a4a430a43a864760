"""YOLOv3-tiny, COCO, darknet's schedule (yolov3-tiny.cfg).

Start from ImageNet weights: train.init_checkpoint=yolov3-tiny.conv.15."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov3_tiny import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

train.epochs = 273  # 500 200 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
