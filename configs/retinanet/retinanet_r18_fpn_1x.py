"""RetinaNet, ResNet-18 with FPN, COCO, the 1x schedule.

Start from ImageNet weights (torchvision's): train.init_checkpoint=resnet18-*.pth.
"""

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.models.retinanet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

model.backbone.bottom_up.stages.depth = 18
model.backbone.top_block.in_channels = 512

optimizer.lr = 0.01  # for 16 images an iteration
train.epochs = 12.28  # 90 000 iterations of 16 images
train.lr_batch_size = data.batch_size = 16
