"""Fits a network's first convolution to the pixel statistics of the model that it is loaded into.

A network trained on ``(x - m) / s`` computes the same on ``(x - m) / t`` when its first convolution
is multiplied, channel by channel, by ``t / s``; swapping RGB for BGR permutes that convolution's
input channels. Both are exact, at the zero-padded border too, because the same image value ``m``
becomes 0. Another *mean* has no exact equivalent (the padding would not be the mean colour any
more), so it is refused, naming the settings that make it right.
"""

from dataclasses import dataclass

import torch
from torch import nn

from d2proj.errors import InputError

_TOLERANCE = 5e-3  # of 255 grey levels: what rounding in published means amounts to


@dataclass(frozen=True)
class PixelStats:
    """What a network expects of its input: ``(pixels - mean) / std`` on pixels of 0..255.

    Attributes:
        mean: per channel, in the network's channel order.
        std: the same.
        order: ``"RGB"`` or ``"BGR"``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str


def _scaled(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(255 * value, 4) for value in values)


TORCHVISION = PixelStats(_scaled((0.485, 0.456, 0.406)), _scaled((0.229, 0.224, 0.225)), "RGB")
# The VGG-16 of SSD's authors, converted from Caffe, and what torchvision trained from it.
CAFFE_VGG = PixelStats((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), "RGB")
DETECTRON2 = PixelStats((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "BGR")


def model_pixels(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Give the model's own pixel mean and standard deviation, or None if it does not normalise."""
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if not isinstance(mean, torch.Tensor) or not isinstance(std, torch.Tensor):
        return None
    return mean.detach().double().flatten().cpu(), std.detach().double().flatten().cpu()


def fit_stem(
    weight: torch.Tensor, source: PixelStats, model: nn.Module, file: str
) -> tuple[torch.Tensor, str]:
    """Convert the first convolution's weight from the source's pixels to the model's.

    Args:
        weight: (out, 3, kh, kw), as the file has it.
        source: what the file's network expects.
        model: has ``pixel_mean`` and ``pixel_std`` (3 values each, pixels of 0..255) and, as our
            detectors do, ``input_format``; without that the order is told from the mean.
        file: for messages.

    Returns:
        The converted weight (computed in double precision, same dtype) and a note saying what was
        done, "" if nothing was needed.

    Raises:
        InputError: the model subtracts another mean.
    """
    pixels = model_pixels(model)
    if pixels is None or weight.shape[1] != len(source.mean):
        return weight, (
            f"the weights expect {source.order} pixels of 0..255 with mean {list(source.mean)} and "
            f"standard deviation {list(source.std)}; the model does not say what it feeds them"
        )
    model_mean, model_std = pixels
    mean = torch.tensor(source.mean, dtype=torch.float64)
    std = torch.tensor(source.std, dtype=torch.float64)
    stated = getattr(model, "input_format", None)
    for flip in (False, True):
        dims = [0] if flip else []
        if mean.numel() != model_mean.numel():
            break
        if stated in ("RGB", "BGR") and flip != (stated != source.order):
            continue
        if not torch.allclose(mean.flip(dims), model_mean, rtol=0, atol=_TOLERANCE):
            continue
        scale = model_std / std.flip(dims)
        if not flip and bool((scale - 1).abs().max() < 1e-6):
            return weight, ""
        converted = weight.double().flip([1] if flip else []) * scale.view(1, -1, 1, 1)
        order = source.order[::-1] if flip else source.order
        return converted.to(weight.dtype), (
            f"first convolution converted exactly from {source.order} pixels with standard "
            f"deviation {list(source.std)} to the model's {order} with "
            f"{[round(v, 4) for v in model_std.tolist()]}"
        )
    order = stated if stated in ("RGB", "BGR") else "BGR"
    wanted = list(source.mean if order == source.order else source.mean[::-1])
    raise InputError(
        f"{file} was trained on images with the {source.order} mean {list(source.mean)}, the model "
        f"subtracts {[round(v, 4) for v in model_mean.tolist()]} from {order} images: set "
        f"model.pixel_mean={wanted}"
    )
