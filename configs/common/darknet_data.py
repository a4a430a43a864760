"""Data as darknet's recipes have them: RGB, squares without regard to proportions, batches of 64.

Images are cropped, coloured and mirrored, resized to 608 and, by batch, made smaller again.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.data import MultiScale, RandomJitter

from .data import data, dataset

data.batch_size = 64
data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.train_augmentations = [
    L(RandomJitter)(jitter=0.3),
    L(T.Resize)(shape=[608, 608]),
    L(T.RandomBrightness)(intensity_min=1 / 1.5, intensity_max=1.5),  # exposure
    L(T.RandomSaturation)(intensity_min=1 / 1.5, intensity_max=1.5),
    L(T.RandomFlip)(horizontal=True),
]
data.batch_augmentations = [L(MultiScale)(min_size=320, max_size=608, step=32, period=10)]
data.val_augmentations = [L(T.Resize)(shape=[416, 416])]
