"""The toy detector on generated digits, quick enough to be run many times by the tests."""

from detectron2.config import LazyCall as L
from toy_detector import ToyDetector

from ...configs.common.data import data, dataset
from ...configs.common.eval import eval
from ...configs.common.optim import SGD as optimizer
from ...configs.common.schedule import multistep as schedule
from ...configs.common.train import train

model = L(ToyDetector)(num_classes=None)
dataset.format = "digits"
dataset.train_images = 24
dataset.val_images = 10
dataset.image_size = 64
data.batch_size = train.lr_batch_size = 4
data.workers = 0
data.train_augmentations = data.val_augmentations = []
optimizer.lr = 0.05
schedule.warmup_iters = 2
train.max_iter = 12
train.log_period = 1
train.tensorboard = False
train.checkpoint.period_iters = 4
eval.period_epochs = 0.0
