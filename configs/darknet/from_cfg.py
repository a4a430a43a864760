"""Any darknet detector from its cfg file: ``model.cfg_file=yolov4.cfg``."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from d2proj.darknet.detector import DarknetDetector, DarknetResize
from d2proj.darknet.schedule import DarknetSchedule, DarknetSGD

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.train import train

model = L(DarknetDetector)(
    cfg_file=None,
    num_classes=None,  # the cfg file's
    score_thresh=0.005,
    nms_thresh=0.45,
    nms_kind="default",  # cfg: what the file says
)

data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.train_augmentations = [
    L(DarknetResize)(cfg_file="${model.cfg_file}"),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(DarknetResize)(cfg_file="${model.cfg_file}")]

optimizer = L(DarknetSGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0, weight_decay_bias=0.0),
    cfg_file="${model.cfg_file}",
    batch_size="${data.batch_size}",
    lr=None,  # null: the file's, lowered for batches smaller than the file's
    momentum=None,  # null: the file's
    weight_decay=None,  # likewise
)
schedule = L(DarknetSchedule)(cfg_file="${model.cfg_file}")

train.lr_batch_size = 0
