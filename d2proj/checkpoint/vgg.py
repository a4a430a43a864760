"""Translates other people's VGGs, and torchvision's SSD on one, into our names.

Sources: the parameter names of torchvision's models, and of ``vgg16_reducedfc.pth``, the file that
PyTorch ports of SSD start from.
"""

import re
from collections.abc import Iterable, Mapping

import torch

STEM = "conv1_1.weight"

_NUMBERED = re.compile(r"^(?:features\.)?(\d+)\.(\w+)$")
_TORCHVISION_SSD = (
    (r"backbone\.scale_weight$", "backbone.adapters.0.scale"),
    (r"backbone\.extra\.0\.7\.1\.", "backbone.bottom_up.fc6."),
    (r"backbone\.extra\.0\.7\.3\.", "backbone.bottom_up.fc7."),
    (r"head\.classification_head\.module_list\.(\d+)\.", r"head.levels.\1.cls_score."),
    (r"head\.regression_head\.module_list\.(\d+)\.", r"head.levels.\1.bbox_pred."),
)
_EXTRA = re.compile(r"^backbone\.extra\.([1-9]\d*)\.(0|2)\.(weight|bias)$")
_TRUNK = re.compile(r"^backbone\.(features|extra\.0)\.(\d+)\.(weight|bias)$")


def vgg_prefix(names: Iterable[str]) -> str | None:
    """Give what stands before ``conv1_1.weight`` in our names ("backbone.bottom_up."), or None."""
    found = (n.removesuffix(STEM) for n in names if n.endswith(STEM))
    return min((p for p in found if not p or p.endswith(".")), key=len, default=None)


def is_vgg_classifier(names: Iterable[str]) -> bool:
    """Whether these are torchvision's VGG or a reducedfc file: numbered layers alone."""
    rest = [n for n in names if not n.startswith("classifier.")]
    return bool(rest) and all(map(_NUMBERED.match, rest))


def classifier_names(
    tensors: Mapping[str, torch.Tensor], convolutions: Iterable[str]
) -> dict[str, str]:
    """Map the numbered layers of a VGG to ours.

    Args:
        tensors: the file's.
        convolutions: our names (``conv1_1``, ...) in order; a file with two more (reducedfc) has
            ``fc6`` and ``fc7`` too.

    Returns:
        File's name to ours, for the layers that have one.
    """
    ours = iter([*convolutions, "fc6", "fc7"])
    numbers = sorted({int(m[1]) for n in tensors if (m := _NUMBERED.match(n))})
    lead = "features." if any(n.startswith("features.") for n in tensors) else ""
    names: dict[str, str] = {}
    conv: str | None = None
    for number in numbers:
        layer = f"{lead}{number}."
        is_norm = f"{layer}running_mean" in tensors
        if not is_norm:
            conv = next(ours, None)
        if conv is not None:
            target = f"{conv}.norm." if is_norm else f"{conv}."
            for name in tensors:
                if name.startswith(layer):
                    names[name] = target + name.removeprefix(layer)
    return names


def fold_biases(tensors: dict[str, torch.Tensor]) -> None:
    """Take the biases of convolutions that a normalisation follows into its mean, in place.

    torchvision's VGGs with batch normalisation have both, ours the one; what they compute is equal.
    """
    for name in [n for n in tensors if n.endswith(".norm.running_mean")]:
        bias = tensors.pop(name.replace(".norm.running_mean", ".bias"), None)
        if bias is not None:
            tensors[name] = tensors[name] - bias


def decimated_classifier(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make ``fc6`` and ``fc7`` of a classifier's fully connected layers, as SSD does.

    Of the 7x7 window every third row and column, of the 4096 channels every fourth (Liu et al.
    2016, section 3, after DeepLab). Empty if the file has no such layers or they are not finite
    (as in torchvision's file of features alone).
    """
    wanted = {"classifier.0": (4096, 512 * 7 * 7), "classifier.3": (4096, 4096)}
    for layer, shape in wanted.items():
        weight = tensors.get(f"{layer}.weight")
        if weight is None or tuple(weight.shape) != shape or not bool(weight.isfinite().all()):
            return {}
    return {
        "fc6.weight": tensors["classifier.0.weight"].view(4096, 512, 7, 7)[::4, :, ::3, ::3],
        "fc6.bias": tensors["classifier.0.bias"][::4],
        "fc7.weight": tensors["classifier.3.weight"].view(4096, 4096, 1, 1)[::4, ::4],
        "fc7.bias": tensors["classifier.3.bias"][::4],
    }


def torchvision_ssd_name(name: str) -> str:
    """Translate a name of torchvision's ``ssd300_vgg16``; one that no rule fits stays."""
    for pattern, ours in _TORCHVISION_SSD:
        if re.match(pattern, name):
            return re.sub("^" + pattern, ours, name)
    if match := _EXTRA.match(name):
        layer = {"0": "conv1", "2": "conv2"}[match[2]]
        return f"backbone.extra_blocks.{int(match[1]) - 1}.{layer}.{match[3]}"
    if match := _TRUNK.match(name):
        conv = _trunk_conv(match[1] == "features", int(match[2]))
        return f"backbone.bottom_up.{conv}.{match[3]}" if conv else name
    return name


def _trunk_conv(before_pool4: bool, index: int) -> str | None:
    """Our name of VGG-16's convolution at a place of torchvision's two sequences."""
    if not before_pool4:  # pool4 and conv5_*, each with its ReLU
        return {1: "conv5_1", 3: "conv5_2", 5: "conv5_3"}.get(index)
    place = 0
    for stage, depth in enumerate((2, 2, 3, 3), start=1):
        for i in range(1, depth + 1):
            if place == index:
                return f"conv{stage}_{i}"
            place += 2
        place += 1
    return None
