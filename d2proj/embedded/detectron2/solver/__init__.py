"""Groups of parameters for an optimizer, and schedules of its learning rate."""

from detectron2.solver.build import get_default_optimizer_params
from detectron2.solver.lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler", "get_default_optimizer_params"]
