"""Translates the names of other model zoos into Detectron2's, which are also ours.

Sources: the parameter names of torchvision's models (``model.state_dict()``) and of the blobs of
the Caffe2/Detectron ResNets, each checked in tests/checkpoint against the real libraries.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from d2proj.errors import InputError

STEM = "stem.conv1.weight"

_BLOCK_RULES = (
    (re.compile(r"^conv1\."), "stem.conv1."),
    (re.compile(r"^bn1\."), "stem.conv1.norm."),
    (re.compile(r"\.bn(\d)\."), r".conv\1.norm."),
    (re.compile(r"\.downsample\.0\."), ".shortcut."),
    (re.compile(r"\.downsample\.1\."), ".shortcut.norm."),
)
_HEAD_RULES = (
    (r"backbone\.fpn\.extra_blocks\.(p[67])\.", r"backbone.top_block.\1."),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"head\.classification_head\.cls_logits\.", "head.cls_score."),
    (r"head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
)
_HEAD_PATTERNS = tuple((re.compile("^" + pattern), new) for pattern, new in _HEAD_RULES)
_FPN = re.compile(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(?:0\.)?(weight|bias)$")
_TOWER = re.compile(
    r"^head\.(classification|regression)_head\.conv\.(\d+)\.(?:(0)\.)?(weight|bias)$"
)


def torchvision_resnet_name(name: str) -> str:
    """Translate a name of torchvision's ResNet: layer1.0.bn2.weight, res2.0.conv2.norm.weight."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    for pattern, new in _BLOCK_RULES:
        name = pattern.sub(new, name)
    return name


def torchvision_detector_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names of a torchvision Faster R-CNN or RetinaNet on ResNet-FPN to Detectron2's.

    Both spellings are known: with ``.0.`` after each convolution (torchvision >= 0.13) and without
    (before, and in the published files). Names that no rule fits map to themselves.
    """
    names = list(names)
    fpn = [match for match in map(_FPN.match, names) if match]
    levels = 1 + max((int(match[2]) for match in fpn), default=-1)
    return {name: _torchvision_detector_name(name, levels) for name in names}


def _torchvision_detector_name(name: str, fpn_levels: int) -> str:
    body = "backbone.body."
    if name.startswith(body):
        return "backbone.bottom_up." + torchvision_resnet_name(name.removeprefix(body))
    if match := _FPN.match(name):
        part = {"inner": "lateral", "layer": "output"}[match[1]]
        level = 6 - fpn_levels + int(match[2])  # the last one belongs to res5
        return f"backbone.fpn_{part}{level}.{match[3]}"
    if match := _TOWER.match(name):
        subnet = {"classification": "cls_subnet", "regression": "bbox_subnet"}[match[1]]
        # Detectron2 counts the ReLUs between the convolutions; so did torchvision before 0.13.
        index = 2 * int(match[2]) if match[3] else int(match[2])
        return f"head.{subnet}.{index}.{match[4]}"
    for pattern, new in _HEAD_PATTERNS:
        if pattern.match(name):
            return pattern.sub(new, name)
    return name


def caffe2_resnet_name(name: str) -> str | None:
    """Translate a blob of a Caffe2/Detectron ResNet: res2_0_branch2a_w, res2.0.conv1.weight.

    Returns:
        Detectron2's name, or None for a blob that is not of the ResNet's convolutional part.
    """
    match = re.fullmatch(
        r"(?:(?P<stem>(?:res_)?conv1)|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc]))"
        r"_(?P<kind>w|b|bn_(?:s|b|gamma|beta|rm|riv|running_mean|running_var))",
        name,
    )
    if match is None:
        return None
    conv = "stem.conv1"
    if not match["stem"]:
        part = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}[match["branch"]]
        conv = f"res{match['stage']}.{match['block']}.{part}"
    kind = match["kind"]
    if kind in ("w", "b"):
        return f"{conv}.{'weight' if kind == 'w' else 'bias'}"
    statistic = {
        "s": "weight",
        "gamma": "weight",
        "b": "bias",
        "beta": "bias",
        "rm": "running_mean",
        "running_mean": "running_mean",
        "riv": "running_var",
        "running_var": "running_var",
    }[kind.removeprefix("bn_")]
    return f"{conv}.norm.{statistic}"


def complete_affine_norms(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give norms that are scale and shift alone (as Caffe2 merges them) mean 0 and variance 1."""
    completed = dict(tensors)
    for name, scale in tensors.items():
        if name.endswith(".norm.weight"):
            stem = name.removesuffix("weight")
            if stem + "running_mean" not in tensors and stem + "running_var" not in tensors:
                completed[stem + "running_mean"] = torch.zeros_like(scale)
                completed[stem + "running_var"] = torch.ones_like(scale)
    return completed


def resnet_depth(names: Iterable[str]) -> str:
    """Name the ResNet that Detectron2 names describe ("ResNet-50"), or "a ResNet"."""
    names = set(names)
    blocks = []
    for stage in range(2, 6):
        found = {m[1] for n in names if (m := re.search(rf"(?:^|\.)res{stage}\.(\d+)\.conv1\.", n))}
        blocks.append(len(found))
    bottleneck = any(re.search(r"(?:^|\.)res2\.0\.conv3\.", n) for n in names)
    depths: dict[tuple[bool, tuple[int, ...]], str] = {
        (False, (2, 2, 2, 2)): "ResNet-18",
        (False, (3, 4, 6, 3)): "ResNet-34",
        (True, (3, 4, 6, 3)): "ResNet-50",
        (True, (3, 4, 23, 3)): "ResNet-101",
        (True, (3, 8, 36, 3)): "ResNet-152",
    }
    return depths.get((bottleneck, tuple(blocks)), "a ResNet")


def anchor_order(num_anchors: int) -> list[int]:
    """Where, in torchvision's order, stands each anchor of Detectron2's order.

    A cell's anchors run over sizes inside aspect ratios in torchvision, over aspect ratios inside
    sizes in Detectron2. With one size or one ratio (RPN on a pyramid: three ratios) both agree.

    Raises:
        InputError: the number does not tell how many sizes and ratios there are.
    """
    if num_anchors == 9:  # RetinaNet: three octaves, three ratios
        return [ratio * 3 + size for size in range(3) for ratio in range(3)]
    if num_anchors in (1, 2, 3, 5, 7):  # one size or one ratio
        return list(range(num_anchors))
    raise InputError(
        f"the torchvision weights are for {num_anchors} anchors in a cell, whose order cannot be "
        "told; expected 3 (RPN) or 9 (RetinaNet)"
    )
