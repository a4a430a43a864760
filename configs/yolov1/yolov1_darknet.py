"""YOLOv1 as darknet's yolov1.cfg has it, whose weights load: train.init_checkpoint=yolov1.weights.

Batch normalisation, a locally connected layer instead of a fully connected one, 3 boxes a cell.
"""

from .yolov1 import data, dataset, eval, model, optimizer, schedule, train

model.backbone.norm = "BN"
model.head.boxes_per_cell = 3
model.head.local_channels = 256
model.head.fc_dims = []
