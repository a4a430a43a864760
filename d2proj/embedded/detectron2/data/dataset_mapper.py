"""The usual way from a dataset dict to what a detector takes."""

import copy
import logging
from collections.abc import Sequence

import numpy as np
import torch

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]

# Annotations of other tasks, which a box detector does not look at.
_OTHER_TASKS = ("segmentation", "keypoints")


class DatasetMapper:
    """Read an image, augment it with its boxes, and make tensors of both.

    Args:
        is_train: In training the annotations become ``instances``; otherwise they are taken away.
        augmentations: Augmentations or transforms, applied in order.
        image_format: See :func:`detectron2.data.detection_utils.read_image`.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(
            f"[DatasetMapper] Augmentations used in {mode}: {augmentations}"
        )

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dataset dict (not changed) to a model input.

        Returns:
            The dict's other entries, with ``image`` (CHW tensor in ``image_format``) and, in
            training, ``instances`` without crowds and empty boxes.
        """
        sample = copy.deepcopy(dataset_dict)
        image = utils.read_image(sample["file_name"], format=self.image_format)
        utils.check_image_size(sample, image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        sample["image"] = torch.as_tensor(np.ascontiguousarray(planes))
        sample.pop("sem_seg_file_name", None)
        annotations = sample.pop("annotations", None)
        if self.is_train and annotations is not None:
            sample["instances"] = self._instances(annotations, transforms, image.shape[:2])
        return sample

    def _instances(
        self, annotations: list[dict], transforms: T.TransformList, image_size: tuple[int, int]
    ) -> utils.Instances:
        kept = []
        for annotation in annotations:
            if annotation.get("iscrowd", 0) == 0:
                boxed = {k: v for k, v in annotation.items() if k not in _OTHER_TASKS}
                kept.append(utils.transform_instance_annotations(boxed, transforms, image_size))
        return utils.filter_empty_instances(utils.annotations_to_instances(kept, image_size))
