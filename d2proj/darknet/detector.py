"""A detector as a cfg file describes it, without code."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import transforms as T
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2proj.darknet.cfg import Section
from d2proj.darknet.network import BN_EPS, DarknetNetwork
from d2proj.darknet.plan import Layer, Plan, classes_of, plan_network
from d2proj.darknet.trees import section_tree
from d2proj.errors import InputError
from d2proj.modeling.dense_heads.yolo import (
    Decoder,
    DetectionDecoder,
    GaussianYOLODecoder,
    RegionDecoder,
    YOLODecoder,
)
from d2proj.modeling.dense_heads.yolo9000 import TreeDecoder
from d2proj.modeling.losses.darknet_iou import DarknetIoULoss
from d2proj.modeling.losses.gaussian_yolo import GaussianYOLOLoss
from d2proj.modeling.losses.region import DetectionLoss, RegionLoss
from d2proj.modeling.losses.yolo import YOLOLoss
from d2proj.modeling.losses.yolo9000 import TreeRegionLoss
from d2proj.modeling.meta_arch import YOLO, RawMaps, register
from d2proj.modeling.postprocess import PerClassDIoUNMS, PerClassNMS
from d2proj.modeling.word_tree import WordTree

_CHANNELS = 3
_BOX_LOSSES = ("mse", "iou", "giou", "diou", "ciou")
# The exponent that darknet's box_diou has, which its greedynms is decided by, whatever beta_nms.
_GREEDY_BETA = 0.6


class DarknetBackbone(Backbone):
    """A :class:`DarknetNetwork` as Detectron2's backbones are: maps by name, ``layer<i>``.

    Args:
        plan: of a network that predicts boxes.
        bn_eps: see :class:`DarknetNetwork`.
    """

    def __init__(self, plan: Plan, *, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.network = DarknetNetwork(plan, bn_eps=bn_eps)
        self._out_features = [f"layer{layer.index}" for layer in plan.heads]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> raw maps by name."""
        return dict(zip(self._out_features, self.network(x), strict=True))


@register
class DarknetDetector(YOLO):
    """The detector of a cfg file.

    Images come as the file wants them from :class:`DarknetResize`; with ``letter_box=1`` they are
    centred on grey. State-dict names are ``backbone.network.layers.<i>.*``. A file whose training
    options are not supported can be evaluated.

    Args:
        cfg_file: the file.
        num_classes: must be the file's, or with a class tree its map's; None takes it.
        score_thresh, nms_thresh, max_detections: of the greedy NMS of each class.
        nms_kind: ``default``: by the IoU, whatever the file says; ``greedynms`` and ``diounms``: by
            darknet's IoU - (d^2 / c^2)^0.6, or with the file's ``beta_nms``; ``cfg``: the file's.
        bn_eps: see :class:`DarknetNetwork`.
    """

    def __init__(
        self,
        *,
        cfg_file: str | Path | None,
        num_classes: int | None = None,
        score_thresh: float = 0.005,
        nms_thresh: float = 0.45,
        max_detections: int = 100,
        nms_kind: str = "default",
        bn_eps: float = BN_EPS,
    ) -> None:
        plan = plan_network(_given(cfg_file))
        classes = plan.num_classes
        if plan.input[0] != _CHANNELS:
            plan.net.fail(f"pictures have {_CHANNELS} channels, got {plan.input[0]}", "channels")
        decoders = [make_decoder(layer, num_classes) for layer in plan.heads]
        own = decoders[0].num_classes
        if num_classes is not None and num_classes != own:
            plan.heads[0].section.fail(
                f"the file is for {own} classes, the data has {num_classes} (change classes= and "
                "the filters= before it)",
                "classes",
            )
        for layer in plan.heads:
            if classes_of(layer) != classes:
                layer.section.fail(f"the layers before it predict {classes} classes", "classes")
        postprocess = make_nms(
            plan.heads[-1],
            nms_kind,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            max_detections=max_detections,
            topk_candidates=-1,
            clip=False,
        )
        untrainable = None
        losses: list[nn.Module] = []
        try:
            losses = [
                _tree_loss(layer, decoder.tree)
                if isinstance(decoder, TreeDecoder)
                else _LOSSES[layer.kind](layer)
                for layer, decoder in zip(plan.heads, decoders, strict=True)
            ]
        except InputError as error:
            untrainable = str(error)
        super().__init__(
            backbone=DarknetBackbone(plan, bn_eps=bn_eps),
            head=RawMaps(),
            head_in_features=[f"layer{layer.index}" for layer in plan.heads],
            decoders=decoders,
            level_losses=losses,
            postprocess=postprocess,
            num_classes=own,
            pixel_mean=[0.0] * _CHANNELS,
            pixel_std=[255.0] * _CHANNELS,
            input_format="RGB",
        )
        self.plan = plan
        self._untrainable = untrainable
        self.letter_box = plan.net.flag("letter_box")

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Images 0 to 1; in a letter box where the file asks for it."""
        images = super().preprocess_image(batched_inputs)
        if not self.letter_box:
            return images
        height, width = self.plan.input[1:]
        count, channels = images.tensor.shape[:2]
        boxed = images.tensor.new_full((count, channels, height, width), 0.5)
        for row, image, size in zip(boxed, images.tensor, images.image_sizes, strict=True):
            top, left = _margins((height, width), size)
            row[:, top : top + size[0], left : left + size[1]] = image[:, : size[0], : size[1]]
        return ImageList(boxed, images.image_sizes)

    def losses(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Raises:
            InputError: the file has an option of training that is not supported.
        """
        if self._untrainable is not None:
            raise InputError(f"{self._untrainable} in training; the model can be evaluated")
        if self.letter_box:
            gt_instances = [self._shifted(x, 1) for x in gt_instances]
        return super().losses(images, features, gt_instances)

    def detect(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Detections of each image, without the letter box's margins."""
        found = super().detect(images, features)
        return [self._shifted(x, -1) for x in found] if self.letter_box else found

    def _shifted(self, instances: Instances, sign: int) -> Instances:
        name = "gt_boxes" if instances.has("gt_boxes") else "pred_boxes"
        height, width = self.plan.input[1:]
        top, left = _margins((height, width), instances.image_size)
        boxes = instances.get(name).clone()
        boxes.tensor += sign * boxes.tensor.new_tensor([left, top, left, top])
        shifted = Instances(instances.image_size, **instances.get_fields())
        shifted.set(name, boxes)
        return shifted


class DarknetResize(T.Augmentation):
    """Resizes images to the width and height of a cfg file, bilinear.

    With ``letter_box=1`` in the file they become as large as fits inside.

    Args:
        cfg_file: the file.
    """

    def __init__(self, cfg_file: str | Path | None) -> None:
        super().__init__()
        plan = plan_network(_given(cfg_file))
        self.height, self.width = plan.input[1:]
        self.letter_box = plan.net.flag("letter_box")

    def get_transform(self, image: Any) -> T.Transform:
        """The transform of one image (H, W, C)."""
        height, width = image.shape[:2]
        new_h, new_w = self.height, self.width
        if self.letter_box:
            # darknet's rounding (get_network_boxes): down.
            if self.width / width < self.height / height:
                new_h = max(1, height * self.width // width)
            else:
                new_w = max(1, width * self.height // height)
        return T.ResizeTransform(height, width, new_h, new_w)


def make_nms(layer: Layer, kind: str, **options: Any) -> PerClassNMS:
    """The postprocessing that ``nms_kind`` names; darknet asks the last section of predictions."""
    kinds = ("default", "greedynms", "diounms", "cornersnms")
    section = layer.section
    if kind == "cfg":
        kind = section.text("nms_kind", "default")
        if kind not in kinds:
            section.fail(f"nms_kind must be one of {', '.join(kinds)}, got {kind}", "nms_kind")
    if kind == "greedynms":
        return PerClassDIoUNMS(beta=_GREEDY_BETA, **options)
    if kind == "diounms":
        beta = section.number("beta_nms", _GREEDY_BETA)
        if beta < 0:
            section.fail(f"beta_nms must be at least 0, got {beta:g}", "beta_nms")
        return PerClassDIoUNMS(beta=beta, **options)
    if kind not in kinds:
        raise ValueError(f"nms_kind must be one of cfg, {', '.join(kinds)}, got {kind}")
    return PerClassNMS(**options)  # what cornersnms comes to, too


def make_decoder(layer: Layer, num_classes: int | None = None) -> Decoder:
    """The decoder that a section of predictions describes.

    Args:
        layer: the section's.
        num_classes: of the data, which may be fewer than those of a class tree (``map=``).
    """
    section = layer.section
    classes = classes_of(layer)
    if layer.kind == "detection":
        if section.flag("softmax"):
            section.fail("softmax is not supported", "softmax")
        return DetectionDecoder(
            num_classes=classes,
            side=section.integer("side", 7, low=1, high=1024),
            boxes_per_cell=section.integer("num", 1, low=1, high=4096),
            square_root=section.flag("sqrt"),
        )
    if layer.kind == "region":
        if "tree" in section.options:
            tree = section_tree(section, classes, num_classes=num_classes)
            return TreeDecoder(anchors=_anchors(layer), tree=tree)
        return RegionDecoder(
            anchors=_anchors(layer), num_classes=classes, softmax=section.flag("softmax")
        )
    own = [_anchors(layer)[i] for i in _mask(layer)]
    scale = section.number("scale_x_y", 1.0)
    if layer.kind == "Gaussian_yolo":
        if section.text("yolo_point", "center") in ("left_top", "right_bottom"):
            section.fail("a yolo_point but center is not supported", "yolo_point")
        return GaussianYOLODecoder(anchors=own, num_classes=classes, scale_x_y=scale)
    return YOLODecoder(
        anchors=own,
        num_classes=classes,
        scale_x_y=scale,
        new_coords=section.flag("new_coords"),
    )


def _yolo_options(layer: Layer) -> dict[str, Any]:
    """What the losses of ``[yolo]`` and ``[Gaussian_yolo]`` have in common."""
    section = layer.section
    kind = section.text("iou_loss", "mse")
    if kind not in _BOX_LOSSES:
        section.fail(f"iou_loss must be one of {', '.join(_BOX_LOSSES)}, got {kind}", "iou_loss")
    if kind == "mse" and section.flag("new_coords"):
        section.fail(
            "new_coords can only be trained with an IoU loss (iou_loss=ciou)", "new_coords"
        )
    max_delta = section.number("max_delta", math.inf)
    if not max_delta > 0:
        section.fail(f"max_delta must be positive, got {max_delta:g}", "max_delta")
    if section.number("truth_thresh", 1.0) < 1:
        section.fail("truth_thresh below 1 is not supported", "truth_thresh")
    if section.text("iou_thresh_kind", "iou") != "iou":
        section.fail("an iou_thresh_kind but iou is not supported", "iou_thresh_kind")
    for key in ("focal_loss", "map", "counters_per_class", "embedding_layer"):
        if section.text(key, "0") != "0":
            section.fail(f"{key} is not supported", key)
    return {
        "anchors": _anchors(layer),
        "mask": _mask(layer),
        "num_classes": classes_of(layer),
        "box_loss": None if kind == "mse" else DarknetIoULoss(kind, max_delta=max_delta),
        "ignore_thresh": section.number("ignore_thresh", 0.5),
        "iou_thresh": section.number("iou_thresh", 1.0),
        "iou_normalizer": section.number("iou_normalizer", 0.75),
        "obj_normalizer": section.number("obj_normalizer", 1.0),
        "label_smooth_eps": section.number("label_smooth_eps", 0.0),
        "objectness_smooth": section.flag("objectness_smooth"),
    }


def _yolo_loss(layer: Layer) -> nn.Module:
    return YOLOLoss(**_yolo_options(layer))


def _gaussian_yolo_loss(layer: Layer) -> nn.Module:
    return GaussianYOLOLoss(
        uc_normalizer=layer.section.number("uc_normalizer", 1.0), **_yolo_options(layer)
    )


def _region_loss(layer: Layer) -> nn.Module:
    section = layer.section
    if section.text("map", "0") != "0":
        section.fail("map is not supported without tree", "map")
    return RegionLoss(
        num_classes=classes_of(layer),
        softmax=section.flag("softmax"),
        **_region_options(section),
    )


def _tree_loss(layer: Layer, tree: WordTree) -> nn.Module:
    # darknet lets a mere label's objectness alone.
    return TreeRegionLoss(tree=tree, assumed_iou=0.0, **_region_options(layer.section))


def _region_options(section: Section) -> dict[str, Any]:
    for key in ("classfix", "focal_loss"):
        if section.text(key, "0") != "0":
            section.fail(f"{key} is not supported", key)
    return {
        "object_scale": section.number("object_scale", 1.0),
        "noobject_scale": section.number("noobject_scale", 1.0),
        "class_scale": section.number("class_scale", 1.0),
        "coord_scale": section.number("coord_scale", 1.0),
        "thresh": section.number("thresh", 0.5),
        "rescore": section.flag("rescore"),
        "bias_match": section.flag("bias_match"),
    }


def _detection_loss(layer: Layer) -> nn.Module:
    section = layer.section
    for key in ("forced", "random"):
        if section.flag(key):
            section.fail(f"{key} is not supported", key)
    return DetectionLoss(
        num_classes=classes_of(layer),
        object_scale=section.number("object_scale", 1.0),
        noobject_scale=section.number("noobject_scale", 1.0),
        class_scale=section.number("class_scale", 1.0),
        coord_scale=section.number("coord_scale", 1.0),
        rescore=section.flag("rescore"),
    )


_LOSSES: dict[str, Callable[[Layer], nn.Module]] = {
    "yolo": _yolo_loss,
    "Gaussian_yolo": _gaussian_yolo_loss,
    "region": _region_loss,
    "detection": _detection_loss,
}


def _anchors(layer: Layer) -> list[list[float]]:
    flat = layer.section.numbers("anchors")
    total = layer.section.integer("num", 1, low=1, high=4096)
    return [flat[i : i + 2] for i in range(0, 2 * total, 2)]


def _mask(layer: Layer) -> list[int]:
    return layer.section.integers("mask") or list(range(len(_anchors(layer))))


def _margins(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def _given(cfg_file: str | Path | None) -> str | Path:
    if cfg_file is None:
        raise InputError("model.cfg_file must be the path of a darknet cfg file, got null")
    return cfg_file
