"""RFBNet300, VGG-16, COCO, the schedule of the authors' code.

Start from ImageNet weights of VGG-16: train.init_checkpoint=vgg16_features-amdegroot-88682ab5.pth
(torchvision's) or vgg16_reducedfc.pth (with fc6 and fc7).
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.augmentations import ssd_augmentations
from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.rfb import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

data.batch_size = train.lr_batch_size = 32
data.train_augmentations = [*ssd_augmentations, L(T.Resize)(shape=[300, 300])]
data.val_augmentations = [L(T.Resize)(shape=[300, 300])]

optimizer.lr = 4e-3  # for 32 images an iteration
optimizer.weight_decay = 5e-4
schedule.milestones = [0.6, 0.8, 0.9333]  # after 90, 120 and 140 epochs
schedule.warmup_iters = 18000  # five epochs
train.epochs = 150
