"""Augmentations that belong together; a recipe adds what brings images to their size."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.data.augmentations import PhotometricDistort, RandomExpand, SSDRandomCrop

# SSD's (Liu et al. 2016, sections 2.2 and 3.6).
ssd_augmentations = [
    L(PhotometricDistort)(image_format="${data.image_format}"),
    L(RandomExpand)(fill=[104, 117, 123]),
    L(SSDRandomCrop)(),
    L(T.RandomFlip)(horizontal=True),
]
