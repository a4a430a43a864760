"""YOLOv2-tiny from scratch on a CPU, on a small data set (``dataset.format=...``).

With YOLOv2's passthrough, which the published tiny one lacks: small objects live in its fine map.
"""

from detectron2.config import LazyCall as L

from d2proj.modeling.necks import Passthrough

from ..common.eval import eval
from ..common.models.yolov2_tiny import model
from ..common.small_data import data, dataset, optimizer, schedule, train

model.num_classes = None  # as many as the data has
model.backbone.out_features = "${..in_features}"
model.backbone = L(Passthrough)(
    bottom_up=model.backbone, in_features=["c4", "c5"], channels=256, passthrough_channels=64
)
model.head.in_channels = [512]
model.head_in_features = ["p5"]
model.head.prior_prob = 0.01
model.level_losses[0].coord_scale = 5.0
model.level_losses[0].warmup_images = 0  # published: 12 800, more than such a run sees

data.image_format = "RGB"

train.clip_grad.max_norm = 35.0
