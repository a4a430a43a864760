"""A batch of images of different sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class ImageList:
    """Images padded at the right and the bottom into one ``tensor``, and their ``image_sizes``."""

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]) -> None:
        """Wrap a batch.

        Args:
            tensor: (N, H, W) or (N, C1, ..., CK, H, W).
            image_sizes: (height, width) of each image before padding.
        """
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """The image ``idx`` without its padding: (H, W) or (C1, ..., CK, H, W)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """The batch on another device or in another dtype."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to one size, and stack them.

        Args:
            tensors: at least one image, (H, W) or (C1, ..., CK, H, W), with equal leading sizes.
            size_divisibility: the padded height and width are multiples of it; 0: of 1.
            pad_value: what the padding holds.
            padding_constraints: ``size_divisibility``, which overrides the argument, and
                ``square_size``, to which both sides are padded if it is positive.

        Raises:
            AssertionError: no images, no list or tuple, or shapes that do not fit.
        """
        assert isinstance(tensors, list | tuple), f"expected a list, got {type(tensors)}"
        assert len(tensors) > 0, "expected at least one image"
        first = tensors[0]
        for image in tensors:
            assert isinstance(image, torch.Tensor), f"expected tensors, got {type(image)}"
            assert image.shape[:-2] == first.shape[:-2], (
                f"images differ in more than size: {tuple(image.shape)}, {tuple(first.shape)}"
            )
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = _padded_size(sizes, size_divisibility, padding_constraints or {})
        batch = first.new_full((len(tensors), *first.shape[:-2], height, width), pad_value)
        for index, (image, (image_height, image_width)) in enumerate(
            zip(tensors, sizes, strict=True)
        ):
            batch[index, ..., :image_height, :image_width].copy_(image)
        return ImageList(batch, sizes)


def _padded_size(
    sizes: list[tuple[int, int]], divisor: int, constraints: Mapping[str, int]
) -> tuple[int, int]:
    height = max(size[0] for size in sizes)
    width = max(size[1] for size in sizes)
    square = constraints.get("square_size", 0)
    if square > 0:
        assert square >= max(height, width), (
            f"an image of {height} x {width} does not fit into the square_size {square}"
        )
        height = width = square
    divisor = constraints.get("size_divisibility", divisor)
    if divisor > 1:
        height = -(-height // divisor) * divisor
        width = -(-width // divisor) * divisor
    return height, width
