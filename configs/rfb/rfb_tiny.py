"""Tiny RFBNet, from scratch on a CPU, on a small data set (``dataset.format=...``)."""

from ..common.models.rfb_tiny import model
from ..ssd.ssd_tiny import data, dataset, eval, optimizer, schedule, train

model.num_classes = None  # as many as the data has
