"""A detector of a few hundred weights, with everything that a resumed run could get wrong."""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from d2proj.layers import DropBlock


class ToyDetector(nn.Module):
    """Draws random numbers in training (dropout, some by a schedule), keeps running statistics
    (BN), sees its images.

    Args:
        num_classes: number of classes.
        nan_at: raise a NaN loss once so many training batches were seen; None: never.
        silent: give no detection at all.
        plain: neither dropout nor batch statistics: the loss of a batch is the mean of its images'.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        nan_at: int | None = None,
        silent: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.nan_at = nan_at
        self.silent = silent
        extra = [] if plain else [nn.BatchNorm2d(8), nn.Dropout(), DropBlock(0.5, 3)]
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), *extra, nn.ReLU())
        self.scores = nn.Linear(8, num_classes)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("progress", torch.zeros(()))

    def set_progress(self, fraction: float) -> None:
        """What the trainer tells modules with a schedule."""
        self.progress.fill_(fraction)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, detections otherwise."""
        sides = [min(x["image"].shape[1:]) for x in batched_inputs]
        crop = min(sides)
        images = torch.stack([x["image"][:, :crop, :crop].float() for x in batched_inputs])
        logits = self.scores(self.body(images / 255).mean((2, 3)))
        if not self.training:
            return [
                {"instances": self._detect(x, y)}
                for x, y in zip(batched_inputs, logits, strict=True)
            ]
        self.batches += 1
        wanted = torch.zeros_like(logits)
        for row, sample in zip(wanted, batched_inputs, strict=True):
            row[sample["instances"].gt_classes] = 1
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        if self.nan_at is not None and self.batches > self.nan_at:
            self.level.fill_(float("nan"))
            loss = loss * float("nan")
        return {"loss_cls": loss, "loss_l2": 1e-3 * sum((p**2).sum() for p in self.parameters())}

    def _detect(self, sample: dict, logits: Tensor) -> Instances:
        height, width = sample["height"], sample["width"]
        instances = Instances((height, width))
        count = 0 if self.silent else self.num_classes
        box = torch.tensor([[0.1 * width, 0.1 * height, 0.6 * width, 0.7 * height]])
        instances.pred_boxes = Boxes(box.repeat(count, 1))
        instances.scores = logits.sigmoid()[:count]
        instances.pred_classes = torch.arange(count)
        return instances
