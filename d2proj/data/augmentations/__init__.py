"""Augmentations of one image, in Detectron2's form: they draw a Transform, which is applied."""

from d2proj.data.augmentations.crop import SSDRandomCrop
from d2proj.data.augmentations.expand import RandomExpand
from d2proj.data.augmentations.photometric import PhotometricDistort

__all__ = ["PhotometricDistort", "RandomExpand", "SSDRandomCrop"]
