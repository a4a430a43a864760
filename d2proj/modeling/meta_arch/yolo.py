"""The YOLO family: raw maps of a network, a decoder and a loss for each."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from d2proj.errors import InputError
from d2proj.modeling.dense_heads.yolo import Decoder
from d2proj.modeling.meta_arch.base import register
from d2proj.modeling.meta_arch.dense import Candidates, DenseDetector, Predictions


class RawMaps(nn.Module):
    """The head of a network whose maps are predictions already."""

    def forward(self, maps: list[Tensor]) -> Predictions:
        """Hand them on."""
        return (maps,)


@register
class YOLO(DenseDetector):
    """YOLOv1 to YOLOv4, by their decoders and losses.

    Args:
        decoders: of each map, in the order of ``head_in_features``.
        level_losses: of each map; called with its raw values, its decoder, the ground truth and the
            input's size, they give ``loss_*`` by name, which are summed over the maps. Without
            them the model cannot be trained.
        anchors: (T, 2) of all maps together. Nothing is done with them here: decoders and losses
            have them from this one place of a config (``anchors="${...anchors}"``, each with a
            ``mask``), so that one override changes them all.
        **dense_detector: see :class:`DenseDetector`.
    """

    def __init__(
        self,
        *,
        decoders: Sequence[Decoder],
        level_losses: Sequence[nn.Module] | None,
        anchors: Sequence[Sequence[float]] | None = None,
        **dense_detector: Any,
    ) -> None:
        super().__init__(**dense_detector)
        self.anchors = None if anchors is None else [list(anchor) for anchor in anchors]
        self.decoders = nn.ModuleList(decoders)
        self.level_losses = nn.ModuleList(level_losses or [])

    def darknet_layers(self) -> Iterable[nn.Module]:
        """The layers with weights in the order of darknet's weights files.

        The backbone (or neck) knows where among its own layers those of the head's levels stand.

        Raises:
            InputError: the network is none of darknet's.
        """
        order = getattr(self.backbone, "darknet_layers", None)
        if order is None:
            raise InputError(f"darknet has no network of {type(self.backbone).__name__}")
        return cast("Iterable[nn.Module]", order(getattr(self.head, "levels", ())))

    def prediction_losses(
        self,
        maps: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
        input_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The levels' losses, summed."""
        total: dict[str, Tensor] = {}
        levels = zip(predictions[0], self.decoders, self.level_losses, strict=True)
        for raw, decoder, loss in levels:
            for name, value in loss(raw, decoder, gt_instances, input_size).items():
                total[name] = total[name] + value if name in total else value
        return total

    def decode(
        self, maps: list[Tensor], predictions: Predictions, input_size: tuple[int, int]
    ) -> Candidates:
        """Candidates of all maps of one image."""
        threshold = self.postprocess.score_thresh
        levels = zip(predictions[0], self.decoders, strict=True)
        found = [decoder(raw, input_size, threshold) for raw, decoder in levels]
        boxes, scores, classes = (torch.cat(part) for part in zip(*found, strict=True))
        return boxes, scores, classes
