"""From the raw maps of the YOLO family to candidate boxes.

Every decoder takes the map of one image, as it comes from the network, and gives the (box, class)
pairs above a score: boxes (M, 4) x1 y1 x2 y2 in pixels of the network's input, scores (M,), classes
(M,) int64. A score is objectness times class probability. Sums and exponentials are taken in
float32 or better.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2proj.modeling.boxes import full_precision

Candidates = tuple[Tensor, Tensor, Tensor]


class Decoder(nn.Module):
    """Base of the decoders.

    Args:
        num_classes: C.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """Decode the map (values, H, W) of one image of ``image_size`` (height, width)."""


def _select(objectness: Tensor, classes: Tensor, score_thresh: float) -> Candidates:
    """Rows, scores and classes of the pairs above a score, of (P,) and (P, C) probabilities."""
    scores = objectness[:, None] * classes
    rows, kinds = torch.nonzero(scores > score_thresh).unbind(1)
    return rows, scores[rows, kinds], kinds


def _strides(raw: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(2,) pixels a cell of the map (..., H, W) along x and y."""
    height, width = raw.shape[-2:]
    return torch.tensor([image_size[1] / width, image_size[0] / height], device=raw.device)


def _corners(center: Tensor, size: Tensor) -> Tensor:
    return torch.cat([center - size / 2, center + size / 2], dim=1)


class _AnchorDecoder(Decoder):
    """Anchors at every cell.

    Args:
        anchors: (T, 2) width, height.
        num_classes: C.
        mask: which of the anchors are this map's, A of them; None for all.

    Raises:
        ValueError: ``mask`` counts beyond the anchors.
    """

    anchors: Tensor

    def __init__(
        self,
        *,
        anchors: Sequence[Sequence[float]],
        num_classes: int,
        mask: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes)
        self.objectness = 4  # its place among the values of an anchor
        if mask is not None and max(mask) >= len(anchors):
            raise ValueError(f"mask {list(mask)} counts beyond the {len(anchors)} anchors given")
        own = anchors if mask is None else [anchors[i] for i in mask]
        self.register_buffer("anchors", torch.tensor(own).float(), persistent=False)

    def _candidate_cells(self, raw: Tensor, score_thresh: float) -> tuple[Tensor, Tensor, Tensor]:
        """Values (M, V) of the anchors whose objectness may suffice, their anchor and cell.

        Scores cannot exceed the objectness, so nearly all cells end here.
        """
        height, width = raw.shape[1:]
        raw = raw.view(len(self.anchors), -1, height, width)
        objectness = full_precision(raw[:, self.objectness]).sigmoid()
        anchor, y, x = torch.nonzero(objectness > score_thresh).unbind(1)
        return full_precision(raw[anchor, :, y, x]), anchor, torch.stack([x, y], 1)


class YOLODecoder(_AnchorDecoder):
    """YOLOv3 and YOLOv4 (Redmon & Farhadi 2018, section 2.1; Bochkovskiy et al. 2020).

    x = (σ(tx) * s - (s - 1) / 2 + cell) * stride, w = anchor * exp(tw), with ``s = scale_x_y`` (the
    sensitivity of the grid). With ``new_coords`` (Scaled-YOLOv4) the network itself ends in a
    sigmoid and w = anchor * (2 t)².

    Args:
        anchors: (T, 2) width, height in pixels of the network's input.
        num_classes: C.
        mask: which of the anchors are this map's, A of them; None for all.
        scale_x_y: s.
        new_coords: see above.
    """

    def __init__(
        self,
        *,
        anchors: Sequence[Sequence[float]],
        num_classes: int,
        mask: Sequence[int] | None = None,
        scale_x_y: float = 1.0,
        new_coords: bool = False,
    ) -> None:
        super().__init__(anchors=anchors, num_classes=num_classes, mask=mask)
        self.scale_x_y = scale_x_y
        self.new_coords = new_coords

    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """See :class:`Decoder`; (A * (5 + C), H, W)."""
        if self.new_coords:
            raw = torch.logit(full_precision(raw), eps=1e-7)
        values, anchor, cell = self._candidate_cells(raw, score_thresh)
        stride = _strides(raw, image_size)
        boxes = self.boxes(values[:, :4], self.anchors[anchor], cell, stride)
        rows, scores, kinds = _select(values[:, 4].sigmoid(), values[:, 5:].sigmoid(), score_thresh)
        return boxes[rows], scores, kinds

    def boxes(self, values: Tensor, anchors: Tensor, cell: Tensor, stride: Tensor) -> Tensor:
        """Boxes from logits.

        Args:
            values: (..., 4) tx, ty, tw, th (with ``new_coords`` logits of what the map holds).
            anchors: (..., 2) pixels.
            cell: (..., 2) x, y of the cells.
            stride: (2,) pixels a cell along x and y.
        """
        offset = values[..., :2].sigmoid() * self.scale_x_y - (self.scale_x_y - 1) / 2
        center = (offset + cell) * stride
        grow = (values[..., 2:].sigmoid() * 2) ** 2 if self.new_coords else values[..., 2:].exp()
        half = grow * anchors / 2
        return torch.cat([center - half, center + half], dim=-1)


class GaussianYOLODecoder(YOLODecoder):
    """Gaussian YOLOv3 (Choi et al. 2019): each coordinate comes with a standard deviation.

    The values of an anchor are x, σx, y, σy, w, σw, h, σh, objectness, classes; a score is also
    multiplied by one minus the mean deviation (equation 8).

    Args:
        anchors: (T, 2) width, height in pixels of the network's input.
        num_classes: C.
        mask: which of the anchors are this map's, A of them; None for all.
        scale_x_y: as in :class:`YOLODecoder`; darknet applies it to σx and σy, too.
    """

    def __init__(
        self,
        *,
        anchors: Sequence[Sequence[float]],
        num_classes: int,
        mask: Sequence[int] | None = None,
        scale_x_y: float = 1.0,
    ) -> None:
        super().__init__(anchors=anchors, num_classes=num_classes, mask=mask, scale_x_y=scale_x_y)
        self.objectness = 8

    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """See :class:`Decoder`; (A * (9 + C), H, W)."""
        values, anchor, cell = self._candidate_cells(raw, score_thresh)
        shift = (self.scale_x_y - 1) / 2
        position = values[:, :4].sigmoid() * self.scale_x_y - shift  # x, σx, y, σy
        stride = _strides(raw, image_size)
        center = (position[:, ::2] + cell) * stride
        boxes = _corners(center, values[:, 4:8:2].exp() * self.anchors[anchor])
        spread = torch.cat([position[:, 1::2], values[:, 5:9:2].sigmoid()], 1).mean(1)
        certain = values[:, 8].sigmoid() * (1 - spread)
        rows, scores, kinds = _select(certain, values[:, 9:].sigmoid(), score_thresh)
        return boxes[rows], scores, kinds


class RegionDecoder(_AnchorDecoder):
    """YOLOv2 (Redmon & Farhadi 2017, section 2): exclusive classes, anchors in cells.

    Args:
        anchors: (A, 2) width, height in cells.
        num_classes: C.
        softmax: whether class values go through a softmax; as they are, otherwise.
    """

    def __init__(
        self, *, anchors: Sequence[Sequence[float]], num_classes: int, softmax: bool = True
    ) -> None:
        super().__init__(anchors=anchors, num_classes=num_classes)
        self.softmax = softmax

    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """See :class:`Decoder`; (A * (5 + C), H, W)."""
        values, anchor, cell = self._candidate_cells(raw, score_thresh)
        boxes = self._boxes(values, anchor, cell, raw, image_size)
        classes = values[:, 5:].softmax(1) if self.softmax else values[:, 5:]
        rows, scores, kinds = _select(values[:, 4].sigmoid(), classes, score_thresh)
        return boxes[rows], scores, kinds

    def _boxes(
        self,
        values: Tensor,
        anchor: Tensor,
        cell: Tensor,
        raw: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """(M, 4) corners in pixels of what :meth:`_candidate_cells` gave."""
        stride = _strides(raw, image_size)
        center = (values[:, :2].sigmoid() + cell) * stride
        return _corners(center, values[:, 2:4].exp() * self.anchors[anchor] * stride)

    def grid_boxes(self, values: Tensor, stride: Tensor) -> Tensor:
        """(N, A, H, W, 4) of tx, ty, tw, th to corners in pixels, at every cell."""
        height, width = values.shape[2:4]
        x = torch.arange(width, device=values.device).expand(height, width)
        y = torch.arange(height, device=values.device)[:, None].expand(height, width)
        center = (values[..., :2].sigmoid() + torch.stack([x, y], -1)) * stride
        half = values[..., 2:].exp() * self.anchors[:, None, None] * stride / 2
        return torch.cat([center - half, center + half], -1)


class DetectionDecoder(Decoder):
    """YOLOv1 (Redmon et al. 2016, section 2), in darknet's order of values.

    All cells' classes (side, side, C), then all confidences (side, side, B), then all boxes (side,
    side, B, 4): x, y in the cell, (square roots of) w, h of the image; nothing goes through a
    sigmoid.

    Args:
        num_classes: C.
        side: cells along a side.
        boxes_per_cell: B.
        square_root: whether w and h are predicted as square roots.
    """

    def __init__(
        self, *, num_classes: int, side: int, boxes_per_cell: int, square_root: bool = True
    ) -> None:
        super().__init__(num_classes=num_classes)
        self.side = side
        self.boxes_per_cell = boxes_per_cell
        self.square_root = square_root

    def forward(self, raw: Tensor, image_size: tuple[int, int], score_thresh: float) -> Candidates:
        """See :class:`Decoder`; side * side * (C + 5 B) values in any shape."""
        cells, per_cell = self.side**2, self.boxes_per_cell
        classes, confidence, boxes = self.split(full_precision(raw).reshape(1, -1))
        number = torch.arange(cells, device=raw.device).repeat_interleave(per_cell)
        cell = torch.stack([number % self.side, number // self.side], 1)
        boxes = boxes.reshape(-1, 4)
        image = boxes.new_tensor([image_size[1], image_size[0]])
        center = (boxes[:, :2] + cell) / self.side * image
        size = (boxes[:, 2:] ** 2 if self.square_root else boxes[:, 2:]) * image
        of_box = classes[0].repeat_interleave(per_cell, 0)
        rows, scores, kinds = _select(confidence.flatten(), of_box, score_thresh)
        return _corners(center, size)[rows], scores, kinds

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, values) to classes (N, cells, C), confidences (N, cells, B), boxes (..., B, 4)."""
        cells, per_cell = self.side**2, self.boxes_per_cell
        parts = values.split(
            [cells * self.num_classes, cells * per_cell, cells * per_cell * 4], dim=1
        )
        return (
            parts[0].unflatten(1, (cells, self.num_classes)),
            parts[1].unflatten(1, (cells, per_cell)),
            parts[2].unflatten(1, (cells, per_cell, 4)),
        )
