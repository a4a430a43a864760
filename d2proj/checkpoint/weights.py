"""Loads weights of any supported kind and origin into a model, and says what came of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from d2proj.checkpoint.darknet import load_darknet_checkpoint
from d2proj.checkpoint.files import read_file
from d2proj.checkpoint.flavours import (
    Translation,
    backbone_prefix,
    describe_architecture,
    translate,
)
from d2proj.checkpoint.naming import resnet_depth
from d2proj.checkpoint.report import LoadReport
from d2proj.checkpoint.state import extract_state
from d2proj.checkpoint.vgg import vgg_prefix
from d2proj.errors import InputError

_CLASS_DEPENDENT = re.compile(r"(cls|class|bbox|box|conf|score|pred|logits)[^.]*\.(weight|bias)$")
_MODEL_ENOUGH = 0.5
_BACKBONE_ENOUGH = 0.9

_Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def load_weights(
    model: nn.Module, path: str | Path, *, strict_classes: bool, prefer_ema: bool = True
) -> LoadReport:
    """Fill a model from a weight file; nothing in the file is executed.

    Kind and origin are recognised from the content: torch files (new and old), safetensors,
    Detectron2's ``.pkl``; names of Detectron2 (ours), of torchvision's Faster R-CNN, RetinaNet and
    SSD, of torchvision's, Detectron2's and Caffe2's ResNets and of VGGs (which fill the backbone
    alone), training checkpoints of this project, Detectron2 and fvcore, and darknet's weights (into
    a model that was built from a cfg file). See docs/checkpoints.md.

    Args:
        model: changed in place, once everything below has been checked; wrappers of
            DistributedDataParallel are seen through. ``pixel_mean``, ``pixel_std`` and
            ``num_classes`` are read from it where it has them.
        path: the weight file.
        strict_classes: True for evaluation and prediction: a predictor of another number of
            classes, or any parameter that the file does not fill, is an error. False for
            fine-tuning: those keep the model's initial values and are reported.
        prefer_ema: take the moving averages of a training checkpoint where it has them.

    Returns:
        What was filled and what was not.

    Raises:
        InputError: the file is missing, damaged, no checkpoint, or holds pickled code; less than
            half of the model matches (for a bare backbone: less than 90 % of the model's backbone);
            the file is of another detector; under ``strict_classes``: classes differ, parameters
            are missing, or the model is set up so that the weights would compute something else.
    """
    model = _unwrap(model)
    file = read_file(path)
    if file.kind == "darknet":
        return load_darknet_checkpoint(model, Path(path), whole=strict_classes)
    state = extract_state(file, prefer_ema)
    translation = translate(state, model, Path(path))
    comparison = _compare(translation.tensors, model)
    _require_same_model(translation, comparison, model, path)
    if strict_classes:
        _require_complete(translation, comparison, model, path)
    chosen = {name: translation.tensors[name] for name in comparison.matched}
    model.load_state_dict(chosen, strict=False)
    return LoadReport(
        file=str(path),
        kind=file.kind,
        flavour=translation.flavour,
        matched=tuple(comparison.matched),
        missing=tuple(comparison.missing),
        unexpected=tuple(comparison.unexpected),
        mismatched=comparison.mismatched,
        reinitialised=comparison.reinitialised,
        ignored=tuple(translation.ignored),
        filled=comparison.filled,
        notes=(*translation.notes, *(f"warning: {c}" for c in translation.conflicts)),
    )


@dataclass(frozen=True)
class _Comparison:
    """A file's tensors against a model's; ``sizes`` holds the model's number of values per name."""

    matched: list[str]
    missing: list[str]
    required: list[str]  # the missing ones without which the model does not compute
    unexpected: list[str]
    mismatched: _Shapes
    reinitialised: _Shapes
    sizes: dict[str, int]

    @property
    def filled(self) -> float:
        return self.share(self.matched)

    def share(self, names: list[str], prefix: str = "") -> float:
        """Fraction of the values under a prefix that belong to the names."""
        total = sum(size for name, size in self.sizes.items() if name.startswith(prefix))
        part = sum(self.sizes.get(name, 0) for name in names if name.startswith(prefix))
        return part / total if total else 0.0


def _unwrap(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def _compare(tensors: dict[str, torch.Tensor], model: nn.Module) -> _Comparison:
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    matched = [n for n, t in own.items() if n in tensors and tensors[n].shape == t.shape]
    tied = {own[name].data_ptr() for name in matched if own[name].numel()}
    mismatched: _Shapes = {}
    reinitialised: _Shapes = {}
    missing, required = [], []
    for name, tensor in own.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            shapes = (tuple(tensors[name].shape), tuple(tensor.shape))
            (reinitialised if _differs_in_classes(name, shapes) else mismatched)[name] = shapes
        elif name not in tensors and not (tensor.data_ptr() in tied or _is_counter(name)):
            missing.append(name)
            # Single numbers (a loss's running normaliser) start afresh without harm.
            if name in parameters or tensor.numel() > 1:
                required.append(name)
    counted = {n: t.numel() for n, t in own.items() if t.is_floating_point()}
    unexpected = [name for name in tensors if name not in own]
    return _Comparison(matched, missing, required, unexpected, mismatched, reinitialised, counted)


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _differs_in_classes(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    theirs, ours = shapes
    same_inputs = len(theirs) == len(ours) > 0 and theirs[1:] == ours[1:]
    return same_inputs and _CLASS_DEPENDENT.search(name) is not None


def _require_same_model(
    translation: Translation, comparison: _Comparison, model: nn.Module, path: str | Path
) -> None:
    """Refuse a file of another network: too little of the model, or none of its head, matches."""
    known = [*comparison.matched, *comparison.reinitialised]
    prefix = translation.part
    if prefix is None:
        prefix = backbone_prefix(comparison.sizes)
    if translation.backbone_only and prefix is not None:
        share = comparison.share(known, prefix)
        if share < _BACKBONE_ENOUGH:
            raise InputError(
                f"{path} looks like a {translation.flavour} and fills {share:.0%} of the model's "
                f"backbone ({_backbone_kind(comparison.sizes)}), expected at least "
                f"{_BACKBONE_ENOUGH:.0%}"
            )
        return
    share = comparison.share(known)
    head = [n for n in comparison.sizes if not n.startswith("backbone.")]
    other_head = (
        bool(head)
        and any(not name.startswith("backbone.") for name in translation.tensors)
        and not any(name in comparison.sizes for name in known if not name.startswith("backbone."))
    )
    if share < _MODEL_ENOUGH or other_head:
        reason = "nothing of its head" if share >= _MODEL_ENOUGH else f"{share:.0%} of it"
        raise InputError(
            f"{path} looks like a {translation.flavour}, the model is {_describe(model)}: "
            f"{reason} matches ({len(comparison.matched)} of {len(comparison.sizes)} tensors)"
        )


def _require_complete(
    translation: Translation, comparison: _Comparison, model: nn.Module, path: str | Path
) -> None:
    """Refuse to evaluate with weights that are initial values in part."""
    for name, (theirs, ours) in comparison.reinitialised.items():
        counts = _class_counts(name, theirs[0], ours[0], model)
        if counts is not None:
            raise InputError(
                f"{path} was trained for {counts[0]} classes, the model has {counts[1]}"
            )
    if translation.conflicts:
        raise InputError(f"{path} does not fit the model: {translation.conflicts[0]}")
    for name, (theirs, ours) in {**comparison.reinitialised, **comparison.mismatched}.items():
        raise InputError(
            f"{path} is of another model: {name} has shape {theirs} there and {ours} in the model"
        )
    if comparison.required:
        what = " (a backbone only)" if translation.backbone_only else ""
        raise InputError(
            f"{path} is a {translation.flavour}{what} without {len(comparison.required)} of the "
            f"model's tensors ({comparison.required[0]}, ...): it cannot be evaluated"
        )


def _class_counts(
    name: str, file_rows: int, model_rows: int, model: nn.Module
) -> tuple[int, int] | None:
    """Tell both numbers of classes from the rows of a class predictor; None for other tensors."""
    if re.search(r"(^|\.)cls_score\.(weight|bias)$", name) is None:
        return None
    if "roi_heads." in name:  # one more row for the background
        return file_rows - 1, model_rows - 1
    num_classes = getattr(model, "num_classes", None)
    background = 1 if "head.levels." in name else 0  # SSD's softmax has one more
    if not num_classes or model_rows % (num_classes + background):
        return None
    anchors = model_rows // (num_classes + background)
    return (file_rows // anchors - background, num_classes) if file_rows % anchors == 0 else None


def _backbone_kind(names: Iterable[str]) -> str:
    names = list(names)
    return "VGG" if vgg_prefix(names) is not None else resnet_depth(names)


def _describe(model: nn.Module) -> str:
    name = type(model).__name__
    known = describe_architecture(model.state_dict())
    plain = known.replace(" ", "").replace("-", "").lower()
    return name if plain in name.lower() or known.startswith("an ") else f"{name} ({known})"
