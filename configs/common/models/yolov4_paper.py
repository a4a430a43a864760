"""YOLOv4 with all of its network and its losses that the paper lists (section 3.4)."""

from detectron2.config import LazyCall as L

from d2proj.layers import DropBlock, PointwiseSAM
from d2proj.modeling.backbones import miwrc_csp_darknet53_stages

from .yolov4 import model

dropblock = L(DropBlock)(drop_prob=0.1, block_size=7, ramp=0.85)

# The paper has CmBN, SAM and Mish in the detector, weighted shortcuts in the backbone, DropBlock in
# both.
model.backbone.norm = "CmBN"
model.backbone.activation = "mish"
model.backbone.bottom_up.stages = L(miwrc_csp_darknet53_stages)(
    width=32,
    blocks=[1, 2, 8, 8, 4],
    regularizers=[None, None, None, dropblock, dropblock],
    norm="BN",
    activation="mish",
)
model.backbone.refine = [
    [L(PointwiseSAM)(channels=f"${{....channels[{i}]}}", norm="CmBN"), dropblock] for i in range(3)
]
for loss in model.level_losses:
    loss.label_smooth_eps = 0.1
model.postprocess.beta = 1.0
