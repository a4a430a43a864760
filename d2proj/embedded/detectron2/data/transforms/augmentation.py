"""Augmentations: policies, often random, that look at the data and give a transform for it."""

import inspect
import pprint
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_image(image: Any) -> None:
    assert isinstance(image, np.ndarray), (
        f"[Augmentation] Needs an numpy array, but got a {type(image)}!"
    )
    assert image.ndim in (2, 3), image.ndim


class Augmentation:
    """Decides, from the data, which transform to apply to it.

    A subclass defines :meth:`get_transform`; its parameters are the names of the attributes of the
    input that it wants to see (``image``, ``boxes``, ``sem_seg``). Random numbers come from numpy's
    global generator.
    """

    # Names of the attributes that get_transform wants; found from its signature if None.
    input_args: tuple[str, ...] | None = None

    if TYPE_CHECKING:  # the attributes that _init makes

        def __getattr__(self, name: str) -> Any: ...

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Make attributes of constructor arguments: ``self._init(locals())``."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform for this input, without applying it."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform")

    def __call__(self, aug_input: Any) -> Transform:
        """Transform ``aug_input`` in place and return what was done."""
        transform = self.get_transform(*self._collect_arguments(aug_input))
        assert isinstance(transform, Transform | TransformList), (
            f"{type(self)}.get_transform must return an instance of Transform! "
            f"Got {type(transform)} instead."
        )
        aug_input.transform(transform)
        return transform

    def _collect_arguments(self, aug_input: Any) -> list[Any]:
        if self.input_args is None:
            names = tuple(inspect.signature(self.get_transform).parameters)
            # A bare *args says nothing; such a policy gets the image.
            self.input_args = ("image",) if names == ("args",) else names
        arguments = []
        for name in self.input_args:
            try:
                arguments.append(getattr(aug_input, name))
            except AttributeError as error:
                raise AttributeError(
                    f"{type(self)}.get_transform needs input attribute '{name}', but it is not an "
                    f"attribute of {type(aug_input)}!"
                ) from error
        return arguments

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: Any = None
    ) -> np.ndarray | float:
        """Uniform draw from [low, high), or from [0, low) if only ``low`` is given."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """``Name(a=..., b=...)`` with the constructor's arguments that are not the defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variadic or not hasattr(self, name):
                # The constructor does not keep its arguments: nothing true could be said.
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _TransformAsAugmentation(Augmentation):
    """The policy that always gives the same transform."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def get_transform(self, *args: Any) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)

    __str__ = __repr__


def as_augmentation(item: Augmentation | Transform) -> Augmentation:
    """Return an augmentation as it is, and a transform as the policy that always gives it."""
    assert isinstance(item, Augmentation | Transform | TransformList), item
    return item if isinstance(item, Augmentation) else _TransformAsAugmentation(item)


class AugmentationList(Augmentation):
    """Augmentations one after the other, each of which sees what the one before it made.

    Args:
        augs: Augmentations and transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        super().__init__()
        self.augs = [as_augmentation(item) for item in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([augmentation(aug_input) for augmentation in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(a) for a in self.augs)}]"

    __str__ = __repr__


class AugInput:
    """The data that augmentations see and change.

    Args:
        image: HW or HWC, uint8 in [0, 255] or floating point.
        boxes: float32[N, 4], XYXY in pixels.
        sem_seg: uint8 HW, a label per pixel.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to all that is here, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """``AugmentationList(augmentations)(self)``."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or an :class:`AugInput`.

    Returns:
        What came in, transformed, and the transforms used.
    """
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Older names of the same.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
