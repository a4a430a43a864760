"""SSD300 as torchvision's ssd300_vgg16 computes it, for its weights.

train.init_checkpoint=ssd300_vgg16_coco-b556d3b4.pth
"""

from .ssd300 import data, dataset, eval, model, optimizer, schedule, train

model.anchor_generator.max_size = 300  # no default box is longer than the image
