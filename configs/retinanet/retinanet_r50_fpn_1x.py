"""RetinaNet, ResNet-50 with FPN, COCO, the 1x schedule.

Start from MSRA's ImageNet weights: train.init_checkpoint=R-50.pkl.
"""

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.retinanet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

optimizer.lr = 0.01  # for 16 images an iteration
train.epochs = 12.28  # 90 000 iterations of 16 images
train.lr_batch_size = data.batch_size = 16
