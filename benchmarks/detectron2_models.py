"""The real Detectron2's own models with the architecture of ours, to compare with."""

from collections.abc import Callable

from detectron2.config import instantiate
from torch import nn

from d2proj import _detectron2


def build(name: str, num_classes: int) -> nn.Module:
    """The peer of ``configs/common/models/<name>.py``.

    Raises:
        RuntimeError: where only the embedded part of Detectron2 is installed.
    """
    if _detectron2.is_embedded():
        raise RuntimeError("Detectron2's own models need the real Detectron2 (see CONTRIBUTING.md)")
    return _BUILDERS[name](num_classes)


def _retinanet(num_classes: int) -> nn.Module:
    return instantiate(_retinanet_config(num_classes))


def _faster_rcnn(num_classes: int) -> nn.Module:
    return instantiate(_faster_rcnn_config(num_classes))


def _retinanet_config(num_classes: int):
    from detectron2 import model_zoo

    model = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model
    model.num_classes = num_classes
    model.smooth_l1_beta = 0.0  # as its published model has it (Base-RetinaNet.yaml)
    return model


def _faster_rcnn_config(num_classes: int):
    from detectron2 import model_zoo

    model = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(key)
    model.roi_heads.num_classes = num_classes
    return model


def _tiny_resnet(out_features: list[str]) -> nn.Module:
    from detectron2.layers import Conv2d, get_norm
    from detectron2.modeling.backbone import ResNet
    from detectron2.modeling.backbone.resnet import BasicBlock, CNNBlockBase

    class Stem(CNNBlockBase):
        """Our ConvStem, of Detectron2's layers."""

        def __init__(self) -> None:
            super().__init__(3, 24, 4)
            self.conv1 = self.conv(3, 12)
            self.conv2 = self.conv(12, 24)

        @staticmethod
        def conv(a: int, b: int) -> nn.Module:
            relu = nn.ReLU(inplace=True)
            norm = get_norm("BN", b)
            return Conv2d(a, b, 3, stride=2, padding=1, bias=False, norm=norm, activation=relu)

        def forward(self, x):
            return self.conv2(self.conv1(x))

    stages = []
    channels = 24
    for i in range(4):
        out = 24 * 2**i
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                stride_per_block=[1 if i == 0 else 2, 1],
                in_channels=channels,
                out_channels=out,
                norm="BN",
            )
        )
        channels = out
    return ResNet(Stem(), stages, out_features=out_features)


def _retinanet_tiny(num_classes: int) -> nn.Module:
    model = _retinanet_config(num_classes)
    features = ["res3", "res4", "res5"]
    model.backbone.bottom_up = _tiny_resnet(features)
    model.backbone.in_features = features
    model.backbone.out_channels = 64
    model.backbone.norm = "BN"
    model.backbone.top_block = None
    model.head.input_shape = model.head.input_shape[:3]
    for shape in model.head.input_shape:
        shape.channels = 64
    model.head.conv_dims = [64, 64]
    model.head.norm = "BN"
    model.head_in_features = ["p3", "p4", "p5"]
    model.anchor_generator.sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (16, 32, 64)]
    model.anchor_generator.strides = [8, 16, 32]
    model.box_reg_loss_type = "giou"
    model.pixel_std = [57.375, 57.12, 58.395]
    return instantiate(model)


def _faster_rcnn_tiny(num_classes: int) -> nn.Module:
    model = _faster_rcnn_config(num_classes)
    features = ["res2", "res3", "res4", "res5"]
    model.backbone.bottom_up = _tiny_resnet(features)
    model.backbone.in_features = features
    model.backbone.out_channels = 64
    model.backbone.norm = "BN"
    rpn, roi = model.proposal_generator, model.roi_heads
    rpn.head.in_channels = 64
    rpn.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
    rpn.pre_nms_topk, rpn.post_nms_topk = [400, 300], [300, 200]
    roi.batch_size_per_image = 128
    roi.box_pooler.sampling_ratio = 2
    roi.box_head.input_shape.channels = 64
    roi.box_head.fc_dims = [256, 256]
    roi.box_predictor.input_shape.channels = 256
    roi.box_predictor.box_reg_loss_type = "giou"
    model.pixel_std = [57.375, 57.12, 58.395]
    return instantiate(model)


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "faster_rcnn": _faster_rcnn,
    "faster_rcnn_tiny": _faster_rcnn_tiny,
    "retinanet": _retinanet,
    "retinanet_tiny": _retinanet_tiny,
}
