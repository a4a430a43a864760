"""Recognises whose weights a file holds and translates them to the model's conventions."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from d2proj.checkpoint import naming, pixels, vgg
from d2proj.checkpoint.predictors import convert_predictors
from d2proj.checkpoint.state import FileState
from d2proj.errors import InputError

# sha256 starts of torchvision's published COCO_V1 detectors (their own file names carry them):
# they were trained and are run with an epsilon of 0 in the frozen batch normalisations.
_EPSILON_ZERO_SHA256 = ("258fb6c6", "eeacb38b")
_DROPPED = re.compile(
    r"(^|\.)(num_batches_tracked|pixel_mean|pixel_std|cell_anchors\.\d+)$|^fc\.|^pred_[wb]$|^fc1000_"
)
_FROM_TORCHVISION = ("Faster R-CNN", "Mask R-CNN", "Keypoint R-CNN", "RetinaNet")
_DETECTRON2_NAMES = ("backbone.bottom_up.", "proposal_generator.", "roi_heads.", "head.cls_subnet.")
_SIGNS = (
    (r"^roi_heads\.(mask_head|mask_predictor)\.", "Mask R-CNN"),
    (r"^roi_heads\.keypoint_", "Keypoint R-CNN"),
    (r"^roi_heads\.box_head\.0\.0\.", "Faster R-CNN v2"),
    (r"^roi_heads\.box_predictor\.0\.", "Cascade R-CNN"),
    (r"^roi_heads\.", "Faster R-CNN"),
    (r"^head\.(regression_head\.bbox_ctrness|ctrness)\.", "FCOS"),
    (r"^head\.classification_head\.conv\.0\.1\.", "RetinaNet v2"),
    (r"^head\.(classification_head\.conv|cls_subnet)\.", "RetinaNet"),
    (r"^head\.classification_head\.module_list\.", "torchvision SSD"),
    (r"^head\.levels\.\d+\.cls_score\.", "SSD"),
    (r"^transformer\.", "DETR"),
    (r"^(proposal_generator|rpn)\.", "RPN"),
    (r"^model\.\d+\.", "YOLO of Ultralytics"),
)


@dataclass
class Translation:
    """A file's tensors in the model's terms.

    Attributes:
        flavour: whose weights they are, in words.
        tensors: by the model's names; those without a counterpart keep the file's names.
        backbone_only: the file is a classifier or a bare backbone.
        part: what a bare backbone should fill: how the names begin there; None: the model's ResNet.
        ignored: names left out because no detector needs them.
        notes: what was converted.
        conflicts: settings of the model that make these weights compute something else, each with
            the setting that is right; an error in evaluation, a warning in training.
    """

    flavour: str
    tensors: dict[str, torch.Tensor]
    backbone_only: bool = False
    part: str | None = None
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def translate(state: FileState, model: nn.Module, path: Path) -> Translation:
    """Recognise the file's flavour and bring it to the model's names, classes and pixels.

    Args:
        state: the file's tensors.
        model: what they are going into (read only).
        path: the file, for messages and for recognising published ones.

    Raises:
        InputError: the model's pixel mean differs from the one that the weights were trained with,
            or the file is of a torchvision detector that is not one of those known.
    """
    own = set(model.state_dict())
    names = set(state.tensors)
    dropped = {name for name in names - own if _DROPPED.search(name)}
    kept = {name: t for name, t in state.tensors.items() if name not in dropped}
    if any(name.startswith("backbone.body.") for name in kept):
        result = _from_torchvision_detector(kept, model, path)
    elif "backbone.scale_weight" in kept and vgg.vgg_prefix(own) is not None:
        result = _from_torchvision_ssd(kept, model, path)
    elif vgg.is_vgg_classifier(kept):
        result = _from_vgg(kept, model, path)
    elif "layer1.0.conv1.weight" in kept:
        result = _from_backbone(
            {naming.torchvision_resnet_name(name): t for name, t in kept.items()},
            ("torchvision", pixels.TORCHVISION),
            model,
            path,
        )
    elif any(naming.caffe2_resnet_name(name) for name in kept):
        result = _from_caffe2(kept, model, path)
    elif bare := _bare_backbone(kept):
        source = pixels.TORCHVISION if state.author == "torchvision" else _stated_pixels(state)
        result = _from_backbone(bare, ("Detectron2", source), model, path)
    else:
        result = _from_detectron2(kept, state, model, path)
    result.ignored.extend(sorted(dropped))
    if state.used_ema:
        result.notes.append(
            f"{state.used_ema} tensors are the moving averages (EMA) of the training"
        )
    return result


def backbone_prefix(names: Iterable[str]) -> str | None:
    """Give what stands before ``stem.conv1.weight`` ("backbone.bottom_up."), or None."""
    found = (n.removesuffix(naming.STEM) for n in names if n.endswith(naming.STEM))
    return min((p for p in found if not p or p.endswith(".")), key=len, default=None)


def describe_architecture(names: Iterable[str]) -> str:
    """Say in two or three words which network the names (any library's) belong to."""
    names = list(names)
    for sign, what in _SIGNS:
        if any(re.search(sign, name) for name in names):
            return what
    if backbone_prefix(names) is not None:
        return naming.resnet_depth(names)
    return "an unknown network"


def _from_torchvision_detector(
    tensors: dict[str, torch.Tensor], model: nn.Module, path: Path
) -> Translation:
    what = describe_architecture(tensors)
    if what not in _FROM_TORCHVISION:
        raise InputError(
            f"{path} looks like a torchvision {what}, which cannot be loaded: expected Faster "
            "R-CNN or RetinaNet on ResNet-FPN, or a classifier"
        )
    translated = naming.torchvision_detector_names(tensors)
    renamed = {translated[name]: tensor for name, tensor in tensors.items()}
    result = Translation(f"torchvision {what}", renamed)
    num_classes = getattr(model, "num_classes", None)
    result.notes.extend(convert_predictors(renamed, num_classes))
    old_spelling = any(re.match(r"backbone\.fpn\.inner_blocks\.0\.weight$", n) for n in tensors)
    if old_spelling and _sha256(path).startswith(_EPSILON_ZERO_SHA256):
        result.notes.extend(_fold_epsilon(renamed, model))
    _fit_stem(result, pixels.TORCHVISION, model, path)
    result.conflicts.extend(_stride_conflict(model, in_1x1=False))
    result.conflicts.extend(_top_block_conflict(renamed, model))
    result.notes.append(
        "exact agreement with torchvision also needs its settings: see docs/checkpoints.md"
    )
    return result


def _from_torchvision_ssd(
    tensors: dict[str, torch.Tensor], model: nn.Module, path: Path
) -> Translation:
    renamed = {vgg.torchvision_ssd_name(name): tensor for name, tensor in tensors.items()}
    result = Translation("torchvision SSD", renamed)
    result.notes.extend(convert_predictors(renamed, getattr(model, "num_classes", None)))
    _fit_stem(result, pixels.CAFFE_VGG, model, path)
    # torchvision cuts what is longer than its 300 pixels.
    if getattr(getattr(model, "anchor_generator", None), "max_size", 300) != 300:
        result.conflicts.append(
            "torchvision's default boxes are no longer than the image: set "
            "model.anchor_generator.max_size=300"
        )
    return result


def _from_vgg(tensors: dict[str, torch.Tensor], model: nn.Module, path: Path) -> Translation:
    """Put an ImageNet VGG under the names that the model's backbone has."""
    own = list(model.state_dict())
    prefix = vgg.vgg_prefix(own) or ""
    layers = [name.removeprefix(prefix).split(".")[0] for name in own if name.startswith(prefix)]
    convolutions = [name for name in dict.fromkeys(layers) if name.startswith("conv")]
    names = vgg.classifier_names(tensors, convolutions)
    fully = vgg.decimated_classifier(tensors)
    renamed = {names[name]: tensors[name] for name in names} | fully
    vgg.fold_biases(renamed)
    result = Translation(
        "VGG backbone",
        {prefix + name: tensor for name, tensor in renamed.items()},
        backbone_only=True,
        # fc6 and fc7 are not in every file.
        part=prefix + "conv",
        ignored=sorted(name for name in tensors if name not in names),
    )
    if fully:
        result.notes.append("fc6 and fc7 made of every fourth channel of the classifier's layers")
    _fit_stem(result, pixels.TORCHVISION if fully else pixels.CAFFE_VGG, model, path)
    return result


def _from_caffe2(tensors: dict[str, torch.Tensor], model: nn.Module, path: Path) -> Translation:
    renamed = {naming.caffe2_resnet_name(name) or name: t for name, t in tensors.items()}
    completed = naming.complete_affine_norms(renamed)
    return _from_backbone(completed, ("Caffe2/MSRA", pixels.DETECTRON2), model, path)


def _from_backbone(
    tensors: dict[str, torch.Tensor],
    source: tuple[str, pixels.PixelStats | None],
    model: nn.Module,
    path: Path,
) -> Translation:
    """Put a bare ResNet under the name that the model's backbone has."""
    library, stats = source
    prefix = backbone_prefix(model.state_dict()) or ""
    renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    depth = naming.resnet_depth(tensors)
    result = Translation(f"{library} {depth} backbone", renamed, backbone_only=True)
    if stats is not None:
        _fit_stem(result, stats, model, path)
    if stats is pixels.TORCHVISION or library.startswith("Caffe2"):
        in_1x1 = stats is not pixels.TORCHVISION
        result.conflicts.extend(_stride_conflict(model, in_1x1=in_1x1))
    return result


def _from_detectron2(
    tensors: dict[str, torch.Tensor], state: FileState, model: nn.Module, path: Path
) -> Translation:
    what = describe_architecture(tensors)
    if any(name.startswith(_DETECTRON2_NAMES) for name in tensors):
        what = f"Detectron2 {what}"
    if state.training:
        what = f"training checkpoint of {what}"
    result = Translation(what, dict(tensors))
    if (stats := _stated_pixels(state)) is not None:
        _fit_stem(result, stats, model, path)
    return result


def _bare_backbone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Give a file that is nothing but a ResNet without the prefix that it may have, or None."""
    prefix = backbone_prefix(tensors)
    if prefix is None or not all(name.startswith(prefix) for name in tensors):
        return None
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _stated_pixels(state: FileState) -> pixels.PixelStats | None:
    """Give the pixel statistics that a Detectron2 file itself holds (older zoo files do)."""
    mean, std = state.tensors.get("pixel_mean"), state.tensors.get("pixel_std")
    if mean is None or std is None or mean.numel() != 3 or std.numel() != 3:
        return None
    values = tuple(round(float(v), 4) for v in mean.flatten())
    order = "RGB" if values[0] > values[-1] else "BGR"  # ImageNet's red mean is the largest
    return pixels.PixelStats(values, tuple(round(float(v), 4) for v in std.flatten()), order)


def _fit_stem(result: Translation, source: pixels.PixelStats, model: nn.Module, path: Path) -> None:
    prefix, name = backbone_prefix(result.tensors), naming.STEM
    if prefix is None:
        prefix, name = vgg.vgg_prefix(result.tensors), vgg.STEM
    if prefix is None:
        return
    name = prefix + name
    fitted, note = pixels.fit_stem(result.tensors[name], source, model, str(path))
    result.tensors[name] = fitted
    if note:
        result.notes.append(note)


def _stride_conflict(model: nn.Module, in_1x1: bool) -> list[str]:
    """Compare where a bottleneck strides in the model with where the weights were trained to."""
    modules = dict(model.named_modules())
    block = (backbone_prefix(model.state_dict()) or "") + "res3.0."
    stride = getattr(modules.get(block + "conv1"), "stride", None)
    if block + "conv3" not in modules or stride is None or (max(stride) > 1) == in_1x1:
        return []
    theirs, ours = ("first 1x1", "3x3") if in_1x1 else ("3x3", "first 1x1")
    return [
        f"the weights were trained with the stride in the bottlenecks' {theirs} convolution, the "
        f"model has it in the {ours}: set model.backbone.bottom_up.stages.stride_in_1x1={in_1x1}"
    ]


def _top_block_conflict(tensors: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    name = "backbone.top_block.p6.weight"
    theirs, ours = tensors.get(name), model.state_dict().get(name)
    if theirs is None or ours is None or theirs.shape[1] == ours.shape[1]:
        return []
    return [
        "the weights make P6 from P5, the model from res5: set model.backbone.top_block.in_feature="
        f"p5 model.backbone.top_block.in_channels={theirs.shape[1]}"
    ]


def _fold_epsilon(tensors: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    """Make norms with the model's epsilon compute what they computed with 0."""
    modules = dict(model.named_modules())
    for name in [n for n in tensors if n.endswith(".norm.running_var")]:
        norm = name.removesuffix(".running_var")
        epsilon = float(getattr(modules.get(norm), "eps", 0.0))
        scale, variance = tensors[norm + ".weight"], tensors[name].double()
        factor = torch.where(variance > 0, ((variance + epsilon) / variance).sqrt(), 1.0)
        tensors[norm + ".weight"] = (scale.double() * factor).to(scale.dtype)
    return ["published COCO_V1 weights: epsilon 0 of their batch normalisations folded in"]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
