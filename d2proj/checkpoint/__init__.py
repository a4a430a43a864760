"""Weights of other people's models and our own training checkpoints, read without executing."""

from d2proj.checkpoint.report import LoadReport
from d2proj.checkpoint.training import CheckpointWriteError, TrainingCheckpointer
from d2proj.checkpoint.weights import load_weights

__all__ = ["CheckpointWriteError", "LoadReport", "TrainingCheckpointer", "load_weights"]
