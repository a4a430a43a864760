"""SSD300, VGG-16, Pascal VOC 2007 + 2012, the paper's schedule (section 3.1)."""

from .ssd300 import data, dataset, eval, model, optimizer, schedule, train

dataset.format = "voc"
model.num_classes = 20
# 0.1 of the side, then 0.2 to 0.88 in equal steps, and one more.
model.anchor_generator.sizes = [30, 60, 111, 162, 213, 264, 315]
schedule.milestones = [0.6667, 0.8333]  # after 80 000 and 100 000 iterations
train.epochs = 232  # 120 000 iterations of 32 images
