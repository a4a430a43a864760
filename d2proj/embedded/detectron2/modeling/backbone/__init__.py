"""The contract of backbones."""

from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY

__all__ = ["BACKBONE_REGISTRY", "Backbone"]
