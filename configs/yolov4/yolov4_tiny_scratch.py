"""YOLOv4-tiny from scratch on a CPU, on a small data set (``dataset.format=...``)."""

from ..common.eval import eval
from ..common.models.yolov4_tiny import model
from ..common.small_data import data, dataset, optimizer, schedule, train

model.num_classes = None  # as many as the data has
model.head.prior_prob = 0.01
model.decoders[0].mask = model.level_losses[0].mask = [0, 1, 2]  # no anchor is nobody's

data.image_format = "RGB"

train.clip_grad.max_norm = 35.0
