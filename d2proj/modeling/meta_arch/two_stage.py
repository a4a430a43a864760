"""Two-stage detectors: a proposal source, then heads on the regions that it proposes."""

from typing import Any

from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2proj.modeling.meta_arch.base import Detector, register


@register
class FasterRCNN(Detector):
    """Faster R-CNN (Ren et al. 2015), with FPN (Lin et al. 2017) as configured.

    State-dict names are those of Detectron2's ``GeneralizedRCNN``, and its parts fit in.

    Args:
        proposal_generator: (images, features, ground truth) to proposals and losses.
        roi_heads: (images, features, proposals, ground truth) to detections and losses; any number
            of stages.
        **detector: see :class:`Detector`.
    """

    def __init__(
        self, *, proposal_generator: nn.Module, roi_heads: nn.Module, **detector: Any
    ) -> None:
        super().__init__(**detector)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def losses(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``."""
        proposals, proposal_losses = self.proposal_generator(images, features, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        return {**proposal_losses, **detector_losses}

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Detections of each image, in the frame of the network's input."""
        proposals, _ = self.proposal_generator(images, features)
        return self.roi_heads(images, features, proposals)[0]
