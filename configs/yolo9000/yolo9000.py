"""YOLO9000 as darknet's yolo9000.cfg: model.tree.path=9k.tree, for COCO's 80 classes with
model.tree.class_map=coco9k.map model.num_classes=80. Its weights load: yolo9000.weights.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.darknet_data import data, dataset
from ..common.eval import eval
from ..common.models.yolo9000 import model
from ..common.optim import darknet as optimizer
from ..common.schedule import darknet as schedule
from ..common.train import train

data.train_augmentations[0].jitter = 0.2
data.val_augmentations = [L(T.Resize)(shape=[544, 544])]

train.epochs = 273  # as YOLOv2: 500 200 batches of 64 of COCO trainval35k
train.lr_batch_size = 64
