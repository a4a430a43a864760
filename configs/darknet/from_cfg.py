"""Any darknet detector from its cfg file: ``model.cfg_file=yolov4.cfg``."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.darknet.detector import DarknetDetector, DarknetResize

from ..common.data import data, dataset
from ..common.eval import eval
from ..common.optim import SGD as optimizer
from ..common.schedule import multistep as schedule
from ..common.train import train

model = L(DarknetDetector)(
    cfg_file=None,
    num_classes=None,  # the cfg file's
    score_thresh=0.005,
    nms_thresh=0.45,
)

data.image_format = "RGB"
data.aspect_ratio_grouping = False
data.train_augmentations = [
    L(DarknetResize)(cfg_file="${model.cfg_file}"),
    L(T.RandomFlip)(horizontal=True),
]
data.val_augmentations = [L(DarknetResize)(cfg_file="${model.cfg_file}")]
