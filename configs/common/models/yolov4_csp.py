"""YOLOv4-CSP (Scaled-YOLOv4; yolov4-csp.cfg): Mish and CSP everywhere, other coordinates."""

from detectron2.config import LazyCall as L

from d2proj.modeling.backbones import yolov4_csp_stages
from d2proj.modeling.necks import CSPPAN, CSPTop

from .yolov4 import model

model.backbone._target_ = CSPPAN
model.backbone.bottom_up.stages = L(yolov4_csp_stages)(norm="BN", activation="mish")
model.backbone.top_block._target_ = CSPTop
model.backbone.activation = "mish"
model.head.predictor_activation = "logistic"
for decoder, loss, weight in zip(model.decoders, model.level_losses, (4.0, 1.0, 0.4), strict=True):
    decoder.scale_x_y = 2.0
    decoder.new_coords = True
    loss.iou_thresh = 0.2
    loss.iou_normalizer = 0.05
    loss.obj_normalizer = weight
    loss.objectness_smooth = weight != 4.0  # the finest level has it off
model.level_losses[2].box_loss.max_delta = 2.0
