"""Tiny RetinaNet, from scratch on a CPU, on a small data set (``dataset.format=...``)."""

from ..common.eval import eval
from ..common.models.retinanet_tiny import model
from ..common.small_data import data, dataset, optimizer, schedule, train

model.num_classes = None  # as many as the data has

train.clip_grad.max_norm = 5.0
