"""Augmentations of colour."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from .augmentation import Augmentation

# Weights of R, G, B in the brightness of a pixel (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


class RandomContrast(Augmentation):
    """Blend with the image's mean: intensity below 1 takes contrast away, above 1 adds to it."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=image.mean(), src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(Augmentation):
    """Blend with black: intensity below 1 darkens, above 1 brightens."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=0, src_weight=1 - weight, dst_weight=weight)


class RandomSaturation(Augmentation):
    """Blend an RGB image with its grey form: intensity below 1 pales, above 1 colours."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, "RandomSaturation only works on RGB images"
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        grey = image.dot(_LUMA)[:, :, None]
        return BlendTransform(src_image=grey, src_weight=1 - weight, dst_weight=weight)


class RandomLighting(Augmentation):
    """Add a normally distributed amount of ImageNet's principal colours to an RGB image.

    After AlexNet (Krizhevsky et al. 2012, section 4.1).

    Args:
        scale: Standard deviation of the amount of each component.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._init(locals())
        # Components of the RGB values of ImageNet's training set, a column each.
        self.eigen_vecs = np.array(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, "RandomLighting only works on RGB images"
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
