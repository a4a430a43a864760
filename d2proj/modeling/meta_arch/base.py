"""What all detectors share: images in, checks, detections out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2proj.errors import InputError

T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Register a meta-architecture in Detectron2's registry as ``"d2proj.<ClassName>"``.

    The prefix keeps names that Detectron2 itself holds (``RetinaNet``) reachable.
    """
    name = f"d2proj.{cls.__name__}"
    if name not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY._do_register(name, cls)
    return cls


class Detector(nn.Module):
    """Detectron2's contract: a list of dicts in; losses out when training, detections otherwise.

    Args:
        backbone: images (N, C, H, W) to a dict of named maps.
        num_classes: K; labels are 0 to K - 1.
        pixel_mean, pixel_std: per channel, in the order and range of the images that come in.
        input_format: order of the channels, for those who read images (``"BGR"`` or ``"RGB"``).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.input_format = input_format
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    @property
    def num_labels(self) -> int:
        """Labels of the ground truth are 0 to one less."""
        return self.num_classes

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detect, or learn to.

        Args:
            batched_inputs: for each image a dict with ``image`` ((C, H, W), uint8 or float, 0 to
                255), when training ``instances`` (``gt_boxes``, ``gt_classes``), and optionally
                ``height`` and ``width`` of the original image.

        Returns:
            When training, the losses by name. Otherwise for each image ``{"instances": Instances}``
            with ``pred_boxes`` in the frame of the original image, ``scores`` and ``pred_classes``.

        Raises:
            InputError: for a label that is not in [0, num_classes).
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self.losses(images, features, self.ground_truth(batched_inputs))
        detections = self.detect(images, features)
        return self.to_original_frame(detections, batched_inputs)

    @abstractmethod
    def losses(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of a batch."""

    @abstractmethod
    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Detections of each image, in the frame of the network's input."""

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, pad with zeros at the right and bottom, and batch (channels-last)."""
        images = [item["image"] for item in batched_inputs]
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        multiple = max(self.backbone.size_divisibility, 1)
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
        batch = torch.zeros(
            (len(images), self.pixel_mean.shape[0], height, width),
            dtype=self.pixel_mean.dtype,
            device=self.device,
        ).contiguous(memory_format=torch.channels_last)
        for row, image, (h, w) in zip(batch, images, sizes, strict=True):
            image = image.to(self.device, non_blocking=True)
            row[:, :h, :w] = (image - self.pixel_mean) / self.pixel_std
        return ImageList(batch, sizes)

    def ground_truth(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """The instances of each image on the model's device, their labels checked.

        Boxes without area are left out: they have no centre of an object to find, and logarithms of
        their sides, which most systems learn, are infinite. Mere labels (``gt_has_box``) stay.
        """
        truths = []
        for item in batched_inputs:
            truth = item["instances"]
            classes = truth.gt_classes
            bad = classes[(classes < 0) | (classes >= self.num_labels)].tolist()
            if bad:
                name = item.get("file_name", item.get("image_id", "without a name"))
                raise InputError(
                    f"image {name} has the label {bad[0]}, but the model has {self.num_classes} "
                    f"classes (labels 0 to {self.num_classes - 1})"
                )
            wanted = truth.gt_boxes.nonempty()
            if truth.has("gt_has_box"):
                wanted = wanted | ~truth.gt_has_box
            truths.append(truth[wanted].to(self.device))
        return truths

    @staticmethod
    def to_original_frame(
        detections: list[Instances], batched_inputs: list[dict[str, Any]]
    ) -> list[dict[str, Instances]]:
        """Scale detections from the network's input to the image as it was before resizing."""
        results = []
        for found, item in zip(detections, batched_inputs, strict=True):
            height = item.get("height", found.image_size[0])
            width = item.get("width", found.image_size[1])
            results.append({"instances": detector_postprocess(found, height, width)})
        return results
