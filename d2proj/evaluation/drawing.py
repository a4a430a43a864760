"""Boxes with labels on pictures, drawn with OpenCV (fast enough for videos)."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

_MIN_SIDE = 480  # smaller pictures are enlarged, or else the labels hide them


def class_color(index: int) -> tuple[int, int, int]:
    """A colour (BGR) that is the same for a class wherever it is drawn."""
    hue = index * 0.61803398875 % 1  # the golden ratio spreads the hues of any number of classes
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return int(255 * blue), int(255 * green), int(255 * red)


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Enlarge a small picture by a whole factor; gives (picture, factor)."""
    factor = max(1, round(_MIN_SIDE / max(image.shape[:2])))
    if factor == 1:
        return image.copy(), 1
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), factor


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    labels: Sequence[str],
) -> np.ndarray:
    """Draw boxes and labels, in place, the first on top (detections come best first).

    Args:
        image: (H, W, 3) uint8, BGR.
        boxes: (N, 4), x0 y0 x1 y1 in pixels.
        classes: N class indices, for the colours.
        labels: N texts.
    """
    side = max(image.shape[:2])
    thickness = max(1, round(side / 350))
    scale = max(0.4, side / 1600)
    for box, index, label in reversed(list(zip(boxes, classes, labels, strict=True))):
        color = class_color(int(index))
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        cv2.rectangle(image, (x0, y0), (x1, y1), color, thickness)
        _draw_label(image, label, (x0, y0), color, scale)
    return image


def _draw_label(
    image: np.ndarray,
    label: str,
    corner: tuple[int, int],
    color: tuple[int, int, int],
    scale: float,
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(label, font, scale, 1)
    x = min(max(corner[0], 0), max(image.shape[1] - width, 0))
    y = corner[1] - base if corner[1] - base - height >= 0 else corner[1] + height + base
    cv2.rectangle(image, (x, y - height - 1), (x + width, y + base - 1), color, cv2.FILLED)
    dark = sum(weight * c for weight, c in zip((0.11, 0.59, 0.30), color, strict=True)) > 140
    text_color = (0, 0, 0) if dark else (255, 255, 255)
    cv2.putText(image, label, (x, y), font, scale, text_color, 1, cv2.LINE_AA)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Pictures of one height beside each other, each under a title."""
    titled = []
    for picture, title in zip(pictures, titles, strict=True):
        bar = np.full((28, picture.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        titled += [np.vstack([bar, picture]), np.full((picture.shape[0] + 28, 6, 3), 255, np.uint8)]
    return np.hstack(titled[:-1])
