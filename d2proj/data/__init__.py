"""Data sets, mapper and loaders: from paths on a disk to the batches that a model is given."""

from d2proj.data.batch_augmentations import BatchAugmentation, MultiScale
from d2proj.data.datasets import dataset_defaults, has_split, load_dataset
from d2proj.data.detection_data import DetectionData, check_same_classes
from d2proj.data.loaders import build_train_loader, build_val_loader
from d2proj.data.mapper import DetectionMapper
from d2proj.data.random_jitter import RandomJitter

__all__ = [
    "BatchAugmentation",
    "DetectionData",
    "DetectionMapper",
    "MultiScale",
    "RandomJitter",
    "build_train_loader",
    "build_val_loader",
    "check_same_classes",
    "dataset_defaults",
    "has_split",
    "load_dataset",
]
