"""A detector for single pictures."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import nn

from d2proj.evaluation.inference import evaluating


class Predictor:
    """Calls a model on pictures as they come from OpenCV, after the validation's augmentations."""

    def __init__(
        self,
        model: nn.Module,
        augmentations: Sequence[Any],
        *,
        image_format: str = "BGR",
        fuse: bool = True,
    ) -> None:
        """Use ``model``, which takes channels in the order ``image_format``.

        ``fuse`` is that of :func:`d2proj.evaluation.evaluating`.
        """
        self._model = model
        self._augmentations = T.AugmentationList(list(augmentations))
        self._fuse = fuse
        self._to_rgb = image_format == "RGB"

    def __call__(self, image: np.ndarray) -> Instances:
        """Detect in one picture.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            Instances on the CPU, boxes in the pixels of ``image``.
        """
        ordered = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if self._to_rgb else image
        augmented = T.AugInput(ordered)
        self._augmentations(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        sample = {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
        with evaluating(self._model, fuse=self._fuse):
            instances: Instances = self._model([sample])[0]["instances"]
        return instances.to("cpu")
