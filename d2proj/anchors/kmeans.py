"""k-means over box shapes with the distance 1 - IoU (Redmon & Farhadi 2017, YOLO9000, section 2).

The paper names the distance alone; a cluster's centre is here the mean width and height, and since
that does not always lessen the distance, the best centres seen are kept.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Shapes = npt.NDArray[np.floating]

# Starts are compared on so many boxes; the best one is then refined on all.
_SAMPLE = 20_000
_MOST_ROUNDS = 300
_SMALLEST_GAIN = 1e-7


@dataclass(frozen=True)
class AnchorFit:
    """Anchors for a data set.

    Attributes:
        anchors: float64[k, 2], width and height, by area.
        iou: float32[n], of each box with the anchor of the most alike shape.
        nearest: int64[n], that anchor.
    """

    anchors: npt.NDArray[np.float64]
    iou: npt.NDArray[np.float32]
    nearest: npt.NDArray[np.int64]

    @property
    def mean_iou(self) -> float:
        """Average of ``iou``."""
        return float(self.iou.mean(dtype=np.float64))

    def recall(self, threshold: float) -> float:
        """Share of boxes that some anchor overlaps by more, if their centres agree."""
        return float((self.iou > threshold).mean())


def best_iou(
    shapes: Shapes, anchors: Shapes
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Of each shape (n, 2) the IoU with the best of the anchors (k, 2), centres equal, and which.

    Returns:
        float32[n], int64[n].
    """
    width, height = np.ascontiguousarray(shapes.T, dtype=np.float32)
    area = width * height
    best = np.full(len(shapes), -1, np.float32)
    which = np.zeros(len(shapes), np.int64)
    # Anchor by anchor: a table of all pairs would not fit the cache.
    for number, (w, h) in enumerate(np.asarray(anchors, dtype=np.float32)):
        inter = np.minimum(width, w) * np.minimum(height, h)
        iou = inter / (area + w * h - inter)
        better = iou > best
        best[better] = iou[better]
        which[better] = number
    return best, which


def fit_anchors(shapes: Shapes, k: int, *, seed: int = 0, restarts: int = 10) -> AnchorFit:
    """Cluster box shapes.

    Args:
        shapes: (n, 2) positive widths and heights.
        k: how many anchors.
        seed: of everything drawn; the same seed gives the same anchors.
        restarts: starting points tried.

    Raises:
        ValueError: a shape is not positive, or there are fewer different shapes than anchors.
    """
    shapes = np.asarray(shapes, dtype=np.float32).reshape(-1, 2)
    if not (np.isfinite(shapes).all() and (shapes > 0).all()):
        raise ValueError("widths and heights must be positive numbers")
    if k < 1 or restarts < 1:
        raise ValueError(f"k and restarts must be at least 1, got {k} and {restarts}")
    rng = np.random.default_rng(seed)
    sample = shapes
    if len(shapes) > _SAMPLE:
        sample = shapes[np.sort(rng.choice(len(shapes), _SAMPLE, replace=False))]
    distinct = len(np.unique(sample, axis=0))
    if distinct < k:
        raise ValueError(f"{k} anchors need as many different box shapes, the data has {distinct}")
    found = [_refine(sample, _spread(sample, k, rng)) for _ in range(restarts)]
    anchors, _ = max(found, key=lambda result: result[1])
    if sample is not shapes:
        anchors, _ = _refine(shapes, anchors)
    anchors = anchors[np.argsort(anchors.prod(1), kind="stable")]
    iou, nearest = best_iou(shapes, anchors)
    return AnchorFit(anchors, iou, nearest)


def _spread(shapes: Shapes, k: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Shapes to start from, far from each other (k-means++; Arthur & Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(shapes)))]
    distance = 1 - best_iou(shapes, shapes[chosen])[0].astype(np.float64)
    while len(chosen) < k:
        # Equal shapes differ from themselves by rounding alone.
        weight = np.where(distance < 1e-6, 0, distance) ** 2
        chosen.append(int(rng.choice(len(shapes), p=weight / weight.sum())))
        distance = np.minimum(distance, 1 - best_iou(shapes, shapes[chosen[-1:]])[0])
    return shapes[chosen].astype(np.float64)


def _refine(
    shapes: Shapes, anchors: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Lloyd's iterations; the best anchors on the way and their average IoU."""
    best, best_mean, since = anchors, -1.0, 0
    for _ in range(_MOST_ROUNDS):
        iou, nearest = best_iou(shapes, anchors)
        mean = float(iou.mean(dtype=np.float64))
        since = 0 if mean > best_mean + _SMALLEST_GAIN else since + 1
        if mean > best_mean:
            best, best_mean = anchors, mean
        if since == 3:
            break
        count = np.bincount(nearest, minlength=len(anchors))
        anchors = np.stack(
            [
                np.bincount(nearest, shapes[:, side], minlength=len(anchors)) / np.maximum(count, 1)
                for side in (0, 1)
            ],
            axis=1,
        )
        if (count == 0).any():
            # An anchor without boxes takes the box that is served worst.
            worst = np.argsort(iou, kind="stable")[: int((count == 0).sum())]
            anchors[count == 0] = shapes[worst]
    return best, best_mean
