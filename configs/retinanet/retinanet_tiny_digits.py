"""Tiny RetinaNet on generated digits, a few minutes on two cores (``make demo``)."""

from .retinanet_tiny import data, dataset, eval, model, optimizer, schedule, train

dataset.format = "digits"

data.batch_size = train.lr_batch_size = 16
data.train_augmentations = []  # 128-pixel images, and a mirrored digit is none
data.val_augmentations = []

eval.batch_size = 16
optimizer.lr = 3e-3
train.epochs = 4
