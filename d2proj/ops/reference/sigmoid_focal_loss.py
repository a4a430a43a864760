"""Focal loss in plain torch, from log-sigmoids, which are exact at both ends."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """See :func:`d2proj.ops.sigmoid_focal_loss`. Autograd differentiates it."""
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    x = inputs.to(dtype)
    counted = torch.ones_like(x)
    if targets.dtype == torch.int64 and targets.shape != inputs.shape:
        columns = torch.arange(x.shape[-1], device=x.device)
        counted = (targets >= 0)[..., None].expand_as(x).to(dtype)
        targets = targets[..., None] == columns
    t = targets.to(dtype)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    cross_entropy = -(1 - t) * F.logsigmoid(-x) - t * F.logsigmoid(x)
    loss = (p * (1 - t) + q * t) ** gamma * cross_entropy
    if alpha >= 0:
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    loss = loss * counted
    if reduction != "none":
        loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss.to(inputs.dtype)
