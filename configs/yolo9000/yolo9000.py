"""YOLO9000 as darknet's yolo9000.cfg: model.tree.path=9k.tree, for COCO's 80 classes with
model.tree.class_map=coco9k.map model.num_classes=80. Its weights load: yolo9000.weights.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.yolo9000 import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.train_augmentations = [
    L(T.RandomExtent)(scale_range=[0.8, 1.2], shift_range=[0.4, 0.4]),
    L(T.Resize)(shape=[544, 544]),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(T.Resize)(shape=[544, 544])]
data.batch_size = train.lr_batch_size = 64

optimizer.lr = 1e-3
optimizer.weight_decay = 5e-4
