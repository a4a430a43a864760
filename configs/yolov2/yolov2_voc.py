"""YOLOv2, Pascal VOC, darknet's schedule (yolov2-voc.cfg).

Start from ImageNet weights: train.init_checkpoint=darknet19_448.conv.23."""

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolov2 import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

model.num_classes = 20
model.anchors = [
    [1.3221, 1.73145],
    [3.19275, 4.00944],
    [5.05587, 8.09892],
    [9.47112, 4.84053],
    [11.2364, 10.0071],
]

schedule.milestones = [40_000 / 80_200, 60_000 / 80_200]
train.epochs = 310  # 80 200 batches of 64 of VOC 2007 and 2012 trainval
train.lr_batch_size = 64
