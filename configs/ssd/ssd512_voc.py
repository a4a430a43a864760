"""SSD512, VGG-16, Pascal VOC 2007 + 2012, the paper's schedule (section 3.1)."""

from .ssd512 import data, dataset, eval, model, optimizer, schedule, train

dataset.format = "voc"
model.num_classes = 20
# 0.07 of the side, then 0.15 to 0.9 in equal steps, and one more.
model.anchor_generator.sizes = [35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6]
schedule.milestones = [0.6667, 0.8333]  # after 80 000 and 100 000 iterations
train.epochs = 232  # 120 000 iterations of 32 images
