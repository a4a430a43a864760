"""Encoding of boxes relative to reference boxes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2proj.modeling.boxes import full_precision


class Box2BoxTransform:
    """The deltas ``(dx, dy, dw, dh)`` of R-CNN (Girshick et al. 2014, appendix C).

    They are shifts of the centre in units of the reference's size, and logarithms of the ratios of
    sizes.

    Args:
        weights: multipliers of the four deltas.
        scale_clamp: upper bound of dw and dh when decoding, so that exp does not overflow.
    """

    def __init__(
        self,
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        scale_clamp: float = math.log(1000.0 / 16),
    ) -> None:
        self.weights = tuple(float(w) for w in weights)
        self.scale_clamp = scale_clamp

    def get_deltas(self, references: Tensor, targets: Tensor) -> Tensor:
        """Deltas that turn ``references`` (N, 4) into ``targets`` (N, 4)."""
        (rx, ry, rw, rh), (tx, ty, tw, th) = _to_centre(references), _to_centre(targets)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (tx - rx) / rw,
                wy * (ty - ry) / rh,
                ww * torch.log(tw / rw),
                wh * torch.log(th / rh),
            ),
            dim=-1,
        )

    def apply_deltas(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Decode.

        Args:
            deltas: (..., K * 4) for K boxes per reference.
            references: (..., 4).

        Returns:
            (..., K * 4) boxes, float32 (float64 for float64 deltas).
        """
        deltas = full_precision(deltas)
        x, y, w, h = (part.unsqueeze(-1) for part in _to_centre(references.to(deltas.dtype)))
        wx, wy, ww, wh = self.weights
        dx, dy, dw, dh = deltas.unflatten(-1, (-1, 4)).unbind(-1)  # each (..., K)
        centre_x = dx / wx * w + x
        centre_y = dy / wy * h + y
        half_w = torch.exp((dw / ww).clamp(max=self.scale_clamp)) * w * 0.5
        half_h = torch.exp((dh / wh).clamp(max=self.scale_clamp)) * h * 0.5
        boxes = torch.stack(
            (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h), dim=-1
        )
        return boxes.flatten(-2)


def _to_centre(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h
