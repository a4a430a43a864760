"""SSD512, VGG-16, COCO, the paper's schedule (section 3.4).

Start from ImageNet weights of VGG-16: train.init_checkpoint=vgg16_features-amdegroot-88682ab5.pth
(torchvision's) or vgg16_reducedfc.pth (with fc6 and fc7).
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.augmentations import ssd_augmentations
from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.ssd512 import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

data.batch_size = train.lr_batch_size = 32
data.train_augmentations = [*ssd_augmentations, L(T.Resize)(shape=[512, 512])]
data.val_augmentations = [L(T.Resize)(shape=[512, 512])]

optimizer.lr = 1e-3  # for 32 images an iteration
optimizer.weight_decay = 5e-4
schedule.milestones = [0.6667, 0.8333]  # after 160 000 and 200 000 iterations
train.epochs = 64.9  # 240 000 iterations of 32 images
