"""SSD's distortion of colours (after Howard 2013; Liu et al. 2016, section 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, ColorTransform, Transform


@dataclass(frozen=True)
class ColorDistortion:
    """One distortion of a uint8 or float image of three channels, values 0 to 255.

    The steps are taken in the order of the attributes, ``contrast`` at its second place if
    ``contrast_last``; values are cut to 0 to 255 after each. What is at its default does nothing.

    Attributes:
        brightness: added to all values.
        contrast: multiplies all values.
        saturation: multiplies the S of HSV.
        hue: degrees added to the H of HSV.
        contrast_last: contrast comes after saturation and hue instead of before.
        channels: the order of the channels at the end.
        image_format: ``"BGR"`` or ``"RGB"``.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_last: bool = False
    channels: tuple[int, ...] = (0, 1, 2)
    image_format: str = "BGR"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (H, W, 3) of the same dtype; uint8 is rounded."""
        x = image.astype(np.float32)
        if self.brightness != 0.0:
            x = np.clip(x + np.float32(self.brightness), 0, 255)
        if not self.contrast_last:
            x = self._contrast(x)
        if self.saturation != 1.0 or self.hue != 0.0:
            x = self._saturation_and_hue(x)
        if self.contrast_last:
            x = self._contrast(x)
        if self.channels != (0, 1, 2):
            x = x[..., list(self.channels)]
        if image.dtype == np.uint8:
            return np.rint(x).astype(np.uint8)
        return x.astype(image.dtype)

    def _contrast(self, x: np.ndarray) -> np.ndarray:
        return x if self.contrast == 1.0 else np.clip(x * np.float32(self.contrast), 0, 255)

    def _saturation_and_hue(self, x: np.ndarray) -> np.ndarray:
        """OpenCV's HSV of floats: H in degrees, S from 0 to 1, V as the values."""
        bgr = self.image_format == "BGR"
        hsv = cv2.cvtColor(x, cv2.COLOR_BGR2HSV if bgr else cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + np.float32(self.hue)) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(self.saturation), 0, 1)
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR if bgr else cv2.COLOR_HSV2RGB)
        return np.clip(x, 0, 255)


class PhotometricDistort(Augmentation):
    """Brightness, contrast, saturation and hue, each with its own chance.

    Contrast comes before saturation and hue or after them, by even chances; at last the channels
    may change places.

    Args:
        brightness: largest change of the values, of 255.
        contrast: interval of the factor.
        saturation: interval of the factor.
        hue: largest turn, in degrees.
        prob: chance of each of the four.
        swap_prob: chance of another order of the channels (of any of the six, the same included).
        image_format: ``"BGR"`` or ``"RGB"``, as ``data.image_format``.
    """

    def __init__(
        self,
        *,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        prob: float = 0.5,
        swap_prob: float = 0.5,
        image_format: str = "BGR",
    ) -> None:
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"image_format must be BGR or RGB, got {image_format!r}")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a :class:`ColorDistortion`."""
        del image  # any image is distorted alike
        distortion = ColorDistortion(
            brightness=self._draw((-self.brightness, self.brightness), 0.0),
            contrast=self._draw(self.contrast, 1.0),
            saturation=self._draw(self.saturation, 1.0),
            hue=self._draw((-self.hue, self.hue), 0.0),
            contrast_last=bool(np.random.rand() < 0.5),  # noqa: NPY002 - Detectron2's generator
            channels=self._draw_channels(),
            image_format=self.image_format,
        )
        return ColorTransform(distortion)

    def _draw(self, interval: Sequence[float], otherwise: float) -> float:
        happens = np.random.rand() < self.prob  # noqa: NPY002
        low, high = interval
        return float(np.random.uniform(low, high)) if happens else otherwise  # noqa: NPY002

    def _draw_channels(self) -> tuple[int, ...]:
        if np.random.rand() >= self.swap_prob:  # noqa: NPY002
            return (0, 1, 2)
        return tuple(int(c) for c in np.random.permutation(3))  # noqa: NPY002
